"""Commands without the time that a new interpreter takes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from superd.cli.main import main
from tests.harness import make_plugin

Say = Callable[..., subprocess.CompletedProcess[str]]
Install = Callable[[str, str], None]


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
    """Return a function that installs a plugin, for this process and for those it starts."""
    directory = tmp_path / "site-packages"

    def put(name: str, source: str) -> None:
        for key, value in make_plugin(directory, name, source).items():
            monkeypatch.setenv(key, value)
        monkeypatch.syspath_prepend(directory)

    return put
