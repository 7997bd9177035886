"""`make`: says in one line what the machine lacks, before pip is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.tool("make")


def make(directory: Path, python: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `make run` with an interpreter, as if nothing had been installed yet."""
    return subprocess.run(
        ["make", "-C", str(ROOT), "run", f"PYTHON={python}", f"VENV={directory}/venv"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def stub(directory: Path, setup: str) -> Path:
    """Return an interpreter that runs some code before that of `-c`."""
    file = directory / "python"
    file.write_text(f"""#!/bin/sh\nshift\nexec {sys.executable} -c "import sys\n{setup}\n$1"\n""")
    file.chmod(0o755)
    return file


@pytest.mark.parametrize(
    ("setup", "told"),
    [
        (
            "sys.version_info = (3, 10, 13, 'final', 0)",
            "superd needs Python 3.11 or later, and {python} is 3.10."
            " Name another: make PYTHON=python3.12",
        ),
        (
            "sys.modules['ensurepip'] = None",
            "{python} cannot make virtual environments."
            " Install its venv module (Debian and Ubuntu: apt install python3-venv)",
        ),
    ],
)
def test_an_interpreter_that_will_not_do_is_refused_at_once(
    tmp_path: Path, setup: str, told: str
) -> None:
    python = stub(tmp_path, setup)
    done = make(tmp_path, python)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == told.format(python=python)
    assert not (tmp_path / "venv").exists()


def test_an_interpreter_that_is_missing_is_named(tmp_path: Path) -> None:
    done = make(tmp_path, "python3.999")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        "superd needs Python 3.11 or later, and there is no python3.999."
        " Install it, or name another: make PYTHON=python3.12"
    )
