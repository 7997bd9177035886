"""Real programs for superd to run, and their usual clients.

Runs in the test's process. If the tests run as root, the programs run as the user nobody, who must
be able to read the files that they serve.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

NOBODY = 65534
CLIENT_TIMEOUT = 60  # seconds

# the user who runs the tests may have a git configuration
OWN_GIT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "superd",
    "GIT_AUTHOR_EMAIL": "superd@localhost",
    "GIT_COMMITTER_NAME": "superd",
    "GIT_COMMITTER_EMAIL": "superd@localhost",
    "GIT_TERMINAL_PROMPT": "0",
}


def run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a client to its end."""
    return subprocess.run(
        command,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=CLIENT_TIMEOUT,
        env={**os.environ, **(env or {})},
        check=False,
    )


def output(*command: str, env: dict[str, str] | None = None) -> bytes:
    """Run a client that must succeed, and return its output."""
    done = run(*command, env=env)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def git(directory: Path, *arguments: str) -> str:
    return output("git", "-C", str(directory), *arguments, env=OWN_GIT).decode().strip()


def output_for_input(data: bytes, *command: str) -> bytes:
    """Run a client that must succeed, with `data` as its input, and return its output."""
    return subprocess.run(
        command, input=data, stdout=subprocess.PIPE, timeout=CLIENT_TIMEOUT, check=True
    ).stdout


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def random_bytes(size: int) -> bytes:
    """Return pseudo-random bytes; the same for the same size."""
    return random.Random(size).randbytes(size)


@contextlib.contextmanager
def public_directory() -> Iterator[Path]:
    """Make a directory that other users can read; pytest's own are private to its user."""
    with tempfile.TemporaryDirectory(prefix="superd-test-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


def script(directory: Path, name: str, text: str) -> Path:
    """Write a shell script that every user can run."""
    file = directory / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file
