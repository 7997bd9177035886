"""Only root may be able to change a jail, and each file that superd as root relies on, by any
directory or link of its path.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from superd.config.permissions import jail_problem
from tests.config.configurations import mistakes, written
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


LISTED = """
    [service.a]
    plugin = "echo"
    listen = "tcp://127.0.0.1:0"
    {key} = "outer/inner/file"
    """
INCLUDED = """
    [daemon]
    include = "outer/inner/{name}"

    [service.a]
    plugin = "echo"
    listen = "tcp://127.0.0.1:0"
    """


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (LISTED.format(key="allow-file"), "127.0.0.1\n"),
        (LISTED.format(key="deny-file"), "127.0.0.1\n"),
        (INCLUDED.format(name="file"), '[service.b]\nplugin = "echo"\nlisten = "unix://@b"\n'),
        (INCLUDED.format(name="*.toml"), ""),  # which no file matches
    ],
)
def test_superd_as_root_uses_no_file_whose_path_other_users_can_change(
    tmp_path: Path, text: str, content: str
) -> None:
    written(tmp_path, content, "outer/inner/file")
    assert mistakes(tmp_path, text) == []
    outer, inner = tmp_path / "outer", tmp_path / "outer/inner"
    for place, mode in ((inner, 0o777), (inner, 0o775), (outer, 0o757)):
        place.chmod(mode)
        [mistake] = mistakes(tmp_path, text)
        place.chmod(0o755)
        assert f"its path has {place.relative_to(tmp_path)}, which other users can" in mistake
        assert "superd runs as root: chmod go-w" in mistake
    os.chown(outer, NOBODY, NOBODY)
    [mistake] = mistakes(tmp_path, text)
    assert "superd runs as root: chown it to root" in mistake
    os.chown(outer, 0, 0)
    inner.rename(tmp_path / "real")
    inner.symlink_to("../real")
    assert mistakes(tmp_path, text) == []
    os.chown(inner, NOBODY, NOBODY, follow_symlinks=False)
    [mistake] = mistakes(tmp_path, text)
    assert "its path has outer/inner, which other users can change" in mistake


def test_files_in_a_sticky_directory_are_used_by_name_but_not_by_pattern(tmp_path: Path) -> None:
    """In a sticky directory other users can add files, but not replace those of root."""
    text = '[service.b]\nplugin = "echo"\nlisten = "unix://@b"\n'
    written(tmp_path, text, "outer/inner/file.toml")
    (tmp_path / "outer/inner").chmod(0o1777)
    assert mistakes(tmp_path, INCLUDED.format(name="file.toml")) == []
    [mistake] = mistakes(tmp_path, INCLUDED.format(name="*.toml"))
    assert mistake.startswith("superd.toml:3:15: daemon.include")
    assert "its path has outer/inner, which other users can change" in mistake
