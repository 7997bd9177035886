"""Fixtures of the sniffer's tests."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.harness import Superd


@pytest.fixture
def start(start_superd: Start, tmp_path: Path) -> Start:
    """Return a function that starts superd; `{directory}` in the TOML is its directory."""
    numbers = itertools.count()

    def start(toml: str, *wrapper: str) -> Superd:
        directory = tmp_path / f"superd-{next(numbers)}"
        return start_superd(toml.replace("{directory}", str(directory)), *wrapper)

    return start
