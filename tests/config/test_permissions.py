"""Jails: only root may be able to change the directory and each directory of its path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from superd.config.permissions import jail_problem
from tests.support.proc import NOBODY

pytestmark = pytest.mark.root


def test_a_directory_of_root_can_be_a_jail_below_a_sticky_directory_too(
    jail: Path,
) -> None:
    assert jail_problem("/") is None
    assert jail_problem(str(jail)) is None
    jail.chmod(0o1777)
    inner = jail / "inner"
    inner.mkdir(mode=0o755)
    assert jail_problem(str(inner)) is None


def test_the_error_for_a_missing_directory_names_the_command_that_creates_it(jail: Path) -> None:
    problem = jail_problem(f"{jail}/none")
    assert (
        problem
        == f"No such file or directory: {jail}/none; create it: install -d -m 0755 {jail}/none"
    )


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777, 0o757])
def test_a_directory_that_other_users_can_write_cannot_be_a_jail(jail: Path, mode: int) -> None:
    jail.chmod(mode)
    assert (
        jail_problem(str(jail))
        == f"only root may be able to change a jail, but other users can change {jail}"
    )


def test_neither_a_directory_of_another_user_nor_one_below_it_can_be_a_jail(jail: Path) -> None:
    inner = jail / "inner"
    inner.mkdir(mode=0o755)
    os.chown(jail, NOBODY, NOBODY)
    for path in (jail, inner):
        problem = jail_problem(str(path))
        assert (
            problem == f"only root may be able to change a jail, but other users can change {jail}"
        )


def test_a_directory_below_one_that_other_users_can_write_cannot_be_a_jail(jail: Path) -> None:
    inner = jail / "inner"
    inner.mkdir(mode=0o755)
    jail.chmod(0o777)
    assert (
        jail_problem(str(inner))
        == f"only root may be able to change a jail, but other users can change {jail}"
    )


def test_neither_a_file_nor_a_path_through_one_can_be_a_jail(jail: Path) -> None:
    (jail / "file").touch()
    assert jail_problem(f"{jail}/file") == f"is not a directory: {jail}/file"
    assert jail_problem(f"{jail}/file/x") == f"Not a directory: {jail}/file/x"


def test_a_symbolic_link_is_followed_and_its_whole_path_is_checked(
    tmp_path: Path, jail: Path
) -> None:
    """A safe link does not make a directory below an unsafe one safe."""
    safe = tmp_path / "safe"
    safe.symlink_to(jail)
    assert jail_problem(str(safe)) is None
    (tmp_path / "relative").symlink_to("jail/../safe")
    assert jail_problem(f"{tmp_path}/relative/../jail") is None

    (jail / "inner").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(jail / "inner")
    jail.chmod(0o777)
    assert (
        jail_problem(f"{tmp_path}/link")
        == f"only root may be able to change a jail, but other users can change {jail}"
    )


def test_a_symbolic_link_of_another_user_cannot_be_a_jail(tmp_path: Path, jail: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(jail)
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    assert (
        jail_problem(str(link))
        == f"only root may be able to change a jail, but other users can change {link}"
    )


def test_a_loop_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert jail_problem(f"{tmp_path}/a") == f"Too many levels of symbolic links: {tmp_path}/a"
