"""Which directories can be a jail: root's alone, and all that leads to them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from superd.config.jails import jail_mistake
from tests.support.proc import NOBODY

pytestmark = pytest.mark.root


def test_a_directory_of_root_can_be_a_jail_and_so_can_one_below_a_sticky_directory(
    jail: Path,
) -> None:
    assert jail_mistake("/") is None
    assert jail_mistake(str(jail)) is None
    jail.chmod(0o1777)
    inner = jail / "inner"
    inner.mkdir(mode=0o755)
    assert jail_mistake(str(inner)) is None


def test_what_is_not_there_is_told_with_the_command_that_makes_it(jail: Path) -> None:
    told = jail_mistake(f"{jail}/none")
    assert (
        told == f"No such file or directory: {jail}/none; create it: install -d -m 0755 {jail}/none"
    )


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777, 0o757])
def test_a_directory_that_others_can_write_is_no_jail(jail: Path, mode: int) -> None:
    jail.chmod(mode)
    assert jail_mistake(str(jail)) == f"a jail is root's alone, and others can change {jail}"


def test_a_directory_of_somebody_else_is_no_jail_nor_what_is_below_it(jail: Path) -> None:
    inner = jail / "inner"
    inner.mkdir(mode=0o755)
    os.chown(jail, NOBODY, NOBODY)
    for path in (jail, inner):
        told = jail_mistake(str(path))
        assert told == f"a jail is root's alone, and others can change {jail}"


def test_a_directory_below_one_that_others_can_write_is_no_jail(jail: Path) -> None:
    inner = jail / "inner"
    inner.mkdir(mode=0o755)
    jail.chmod(0o777)
    assert jail_mistake(str(inner)) == f"a jail is root's alone, and others can change {jail}"


def test_a_file_is_no_jail_nor_is_what_stands_below_one(jail: Path) -> None:
    (jail / "file").touch()
    assert jail_mistake(f"{jail}/file") == f"is not a directory: {jail}/file"
    assert jail_mistake(f"{jail}/file/x") == f"Not a directory: {jail}/file/x"


def test_a_symbolic_link_is_followed_and_all_that_it_leads_through_is_looked_at(
    tmp_path: Path, jail: Path
) -> None:
    """A safe directory below an unsafe one is no safer by way of a safe link."""
    safe = tmp_path / "safe"
    safe.symlink_to(jail)
    assert jail_mistake(str(safe)) is None
    (tmp_path / "relative").symlink_to("jail/../safe")
    assert jail_mistake(f"{tmp_path}/relative/../jail") is None

    (jail / "inner").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(jail / "inner")
    jail.chmod(0o777)
    assert (
        jail_mistake(f"{tmp_path}/link") == f"a jail is root's alone, and others can change {jail}"
    )


def test_a_symbolic_link_of_somebody_else_is_no_jail_wherever_it_leads(
    tmp_path: Path, jail: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(jail)
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    assert jail_mistake(str(link)) == f"a jail is root's alone, and others can change {link}"


def test_links_in_a_circle_are_a_mistake_and_not_an_endless_search(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert jail_mistake(f"{tmp_path}/a") == f"Too many levels of symbolic links: {tmp_path}/a"
