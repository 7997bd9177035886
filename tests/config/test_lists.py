"""allow, deny and their list files in a configuration, and the position of each mistake."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from superd.config.lists import LARGEST_LIST
from tests.config.configurations import mistakes, one_mistake, read


def test_a_service_has_the_patterns_of_its_lists_and_list_files(tmp_path: Path) -> None:
    (tmp_path / "friends").write_text("192.0.2.0/24\n\n# nobody else\n.example.com # a domain\n")
    settings = read(
        tmp_path,
        """
        [defaults]
        deny = "*"

        [service.echo]
        plugin = "echo"
        listen = "tcp://127.0.0.1:7"
        allow = ["::1", "user:root"]
        allow-file = "friends"
        """,
    ).settings
    entry = settings.services["echo"]
    assert entry.allow is not None
    assert entry.allow_file is not None
    assert [str(pattern) for pattern in entry.allow] == ["::1", "user:0"]
    assert [str(pattern) for pattern in entry.deny] == ["*"]
    (file,) = entry.allow_file
    assert [(line, str(pattern)) for line, pattern in file.entries] == [
        (1, "192.0.2.0/24"),
        (4, ".example.com"),
    ]


BAD_FILES = {
    "mistakes": (b"192.0.2.1/24\nfine.example\n\xff\xfe\nx y\n", [":1:", ":3:", ":4:"]),
    "many": (b"x y\n" * 50, ["and 30 more"]),
    "nul": (b"\0" * 100, [":1:"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_each_mistake_in_a_list_file_is_reported_with_its_line(tmp_path: Path, name: str) -> None:
    data, expected = BAD_FILES[name]
    (tmp_path / "list").write_bytes(data)
    problem = one_mistake(
        tmp_path,
        """
        [service.echo]
        plugin = "echo"
        listen = "tcp://127.0.0.1:7"
        deny-file = "list"
        """,
    )
    assert "service.echo.deny-file" in problem
    assert problem.isprintable()
    for text in expected:
        assert text in problem


def test_a_list_file_that_is_not_regular_too_long_or_missing_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with open(tmp_path / "long", "wb") as file:
        file.truncate(LARGEST_LIST + 1)
    found = mistakes(
        tmp_path,
        """
        [service.echo]
        plugin = "echo"
        listen = "tcp://127.0.0.1:7"
        allow-file = ["directory", "long", "missing"]
        """,
    )
    assert len(found) == 3
    assert "not a regular file" in found[0]
    assert "longer than 16 MiB" in found[1]
    assert "No such file" in found[2]


@pytest.mark.root
def test_superd_as_root_rejects_a_list_file_that_other_users_can_change(tmp_path: Path) -> None:
    for name in ("open", "shared", "foreign"):
        (tmp_path / name).write_text("127.0.0.1\n")
        (tmp_path / name).chmod(0o644)
    (tmp_path / "open").chmod(0o666)
    (tmp_path / "shared").chmod(0o664)
    os.chown(tmp_path / "foreign", 65534, 0)
    entry = """
        [service.echo]
        plugin = "echo"
        listen = "tcp://127.0.0.1:7"
        {key} = ["open", "shared", "foreign"]
        """
    for key in ("allow-file", "deny-file"):
        found = mistakes(tmp_path, entry.format(key=key))
        assert len(found) == 3
        for number, words in enumerate(
            (
                'open" can be written by others, and superd runs as root: chmod go-w',
                'shared" can be written by others, and superd runs as root: chmod go-w',
                'foreign" belongs to another user, and superd runs as root: chown it to root',
            )
        ):
            assert f"{key}[{number}]: " in found[number]
            assert words in found[number]
