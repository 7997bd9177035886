"""The tests of the configuration pass on every supported Python that is installed.

Each gets a virtual environment with superd. Python's regular expressions and parsers differ in
details: those of 3.11.2 (Debian 12) do not find what those of 3.11.7 find.
"""

from __future__ import annotations

import glob
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATTERNS = ("/usr/bin/python3.[1-9][0-9]", "/usr/local/bin/python3.[1-9][0-9]",
            "~/.pyenv/versions/3.[1-9][0-9].*/bin/python3")  # fmt: skip
OLDEST = (3, 11)
INSTALL_SECONDS = 240
TEST_SECONDS = 240

VERSION = """
import ensurepip, sys, venv
print(*sys.version_info[:3])
"""


def others() -> dict[str, str]:
    """Return the interpreters of other supported versions that can make virtual environments."""
    found: dict[str, str] = {}
    for pattern in PATTERNS:
        for python in sorted(glob.glob(os.path.expanduser(pattern))):
            done = subprocess.run([python, "-c", VERSION], capture_output=True, check=False)
            version = tuple(map(int, done.stdout.split()))
            if version >= OLDEST and version != sys.version_info[:3]:
                found.setdefault(".".join(map(str, version)), python)
    return found


OTHERS = others()


def run(*command: str, seconds: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(INSTALL_SECONDS + TEST_SECONDS)
@pytest.mark.parametrize("version", OTHERS or ["another"])
def test_alike(tmp_path: Path, version: str) -> None:
    if version not in OTHERS:
        pytest.skip("no other supported Python with venv is installed")
    python = tmp_path / "venv/bin/python"
    assert run(OTHERS[version], "-m", "venv", str(tmp_path / "venv"), seconds=60).returncode == 0
    pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    installed = run(*pip, "--editable", ".[dev]", seconds=INSTALL_SECONDS)
    if installed.returncode:
        pytest.skip(f"superd cannot be installed for Python {version}: {installed.stderr[-300:]}")
    # a short path: that of a unix socket has 107 characters at most
    options = ("-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/t")
    deselected = f"--deselect={Path(__file__).relative_to(ROOT)}"
    done = run(str(python), "-m", "pytest", *options, deselected, "tests/config",
               seconds=TEST_SECONDS)  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
