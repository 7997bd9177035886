"""Writes a configuration for a test, and returns its problems."""

from __future__ import annotations

from pathlib import Path

from superd.config.loading import Configuration, load
from superd.errors import ConfigurationError


def written(directory: Path, text: str | bytes, name: str = "superd.toml") -> Path:
    """Write a file that superd as root accepts; return its path."""
    file = directory / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    file.chmod(0o600)
    return file


def read(directory: Path, text: str | bytes) -> Configuration:
    return load(written(directory, text))


def mistakes(directory: Path, text: str | bytes) -> list[str]:
    """Return the problems of a configuration in order, without the directory's name."""
    try:
        problems = read(directory, text).problems
    except ConfigurationError as error:
        problems = error.problems
    lines = str(ConfigurationError(problems)).splitlines()
    return [line.replace(f"{directory}/", "") for line in lines]


def one_mistake(directory: Path, text: str | bytes) -> str:
    """Return the only problem, without the name of the main file."""
    found = mistakes(directory, text)
    assert len(found) == 1, found
    return found[0].removeprefix("superd.toml:")
