"""Fixtures: commands that run in this process, and daemons that are ended after a test."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from superd.cli.main import main
from tests.support.daemons import Configure, stop_daemon
from tests.support.harness import Superd, make_plugin

Say = Callable[..., subprocess.CompletedProcess[str]]
Install = Callable[[str, str], None]


@pytest.fixture(autouse=True)
def default_paths(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Place the default pid file, control socket and ban file of each test in its own directory.

    Without it they are in /run/superd and /var/lib/superd, where a superd of this machine has its.
    """
    directory = tmp_path_factory.mktemp("default")
    for variable in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY"):
        monkeypatch.setenv(variable, str(directory))


@pytest.fixture
def superd_here(capfd: pytest.CaptureFixture[str]) -> Say:
    """Return a function that runs a command of superd in this process."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        code = main(arguments)
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return subprocess.CompletedProcess(arguments, code, out, err)

    return run


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that installs a plugin for this process and its children."""
    directory = tmp_path / "site-packages"

    def put(name: str, source: str) -> None:
        for key, value in make_plugin(directory, name, source).items():
            monkeypatch.setenv(key, value)
        monkeypatch.syspath_prepend(directory)

    return put


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[Configure]:
    """Return a function that writes a configuration; end the daemons after the test."""
    made: list[Superd] = []

    def configure(toml: str, *, env: dict[str, str] | None = None) -> Superd:
        directory = tmp_path / f"superd-{len(made)}"
        directory.mkdir()
        one = Superd(directory, toml, env=env)
        one.write()
        made.append(one)
        return one

    yield configure
    for one in made:
        stop_daemon(one)
        print(f"--- log of {one.file}\n{one.log()}")
