"""Fixtures and marks that all tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Superd

Start = Callable[..., Superd]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the hazards in full length")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "root: needs root; CI has it")
    config.addinivalue_line("markers", "soak: takes minutes; runs with --soak only")
    config.addinivalue_line("markers", "tool(name, ...): needs these programs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))
        if item.get_closest_marker("soak") and not config.getoption("--soak"):
            item.add_marker(pytest.mark.skip(reason="long; runs with --soak"))
        for mark in item.iter_markers("tool"):
            missing = [name for name in mark.args if shutil.which(name) is None]
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(missing)}"))


@pytest.fixture
def start_superd(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts superd with a configuration; all are stopped in the end."""
    started: list[Superd] = []

    def start(toml: str, *wrapper: str, env: dict[str, str] | None = None) -> Superd:
        directory = tmp_path / f"superd-{len(started)}"
        directory.mkdir()
        one = Superd(directory, toml, env=env)
        started.append(one)
        return one.start(*wrapper)

    yield start
    for one in started:
        one.stop()
        print(f"--- log of {one.file}\n{one.log()}")  # pytest shows it where the test failed
