"""The pid file: its lock names the running master, and files of others are never harmed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from superd.errors import AddressInUse, NotPermitted, SuperdError
from superd.master.pidfile import PidFile, holder
from superd.process.isolated import run_isolated

HOLD = """
import sys, pathlib
from superd.master.pidfile import PidFile
kept = PidFile(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
kept.remove()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "superd.pid"


@pytest.fixture
def other(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds the pid file until it is killed or its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_pid_file_contains_its_holders_pid_until_it_is_removed(path: Path) -> None:
    held = PidFile(path)
    assert path.read_text() == f"{os.getpid()}\n"
    held.remove()
    assert not path.exists()
    assert holder(path) is None


def test_the_lock_identifies_the_holder_whatever_the_file_contains(
    path: Path, other: subprocess.Popen[str]
) -> None:
    path.write_text("1\n")
    assert holder(path) == other.pid


def test_a_second_superd_is_refused_and_changes_nothing(
    path: Path, other: subprocess.Popen[str]
) -> None:
    before = path.read_bytes(), path.stat().st_ino
    with pytest.raises(AddressInUse, match=f"process {other.pid}"):
        PidFile(path)
    assert (path.read_bytes(), path.stat().st_ino) == before
    assert holder(path) == other.pid


def test_the_file_of_a_killed_holder_does_not_block_the_next(
    path: Path, other: subprocess.Popen[str]
) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert path.read_text() == f"{other.pid}\n"
    assert holder(path) is None
    PidFile(path).remove()


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"-1\n", b"0\n", b"1\n", b"garbage", b"\x00\xff" * 999, b"9" * 99],
    ids=range(8),
)
def test_the_content_of_a_stale_file_is_ignored(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert holder(path) is None
    held = PidFile(path)
    assert path.read_text() == f"{os.getpid()}\n"
    held.remove()


def test_a_symbolic_link_is_refused_and_its_target_unchanged(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.symlink_to(victim)
    for attempt in (PidFile, holder):
        with pytest.raises(SuperdError, match="symbolic link"):
            attempt(path)
    assert victim.read_text() == "precious"


def test_a_dangling_symbolic_link_creates_nothing(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "nothing")
    with pytest.raises(SuperdError, match="symbolic link"):
        PidFile(path)
    assert not (tmp_path / "nothing").exists()


def test_a_hard_link_is_refused_and_its_other_name_unchanged(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.hardlink_to(victim)
    with pytest.raises(SuperdError, match="hard link"):
        PidFile(path)
    assert victim.read_text() == "precious"


def test_a_pipe_and_a_directory_are_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "directory"):
        with pytest.raises(SuperdError, match=r"not a regular file|Is a directory"):
            PidFile(tmp_path / name)


def test_an_error_names_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(SuperdError, match=r"nowhere/pid: No such file"):
        PidFile(tmp_path / "nowhere" / "pid")


@pytest.mark.root
def test_a_file_of_another_user_is_refused(path: Path) -> None:
    path.touch(mode=0o600)
    path.parent.chmod(0o755)

    def as_another_user() -> str:
        os.chdir(path.parent)  # other users may not search the directories above
        os.setresuid(65534, 65534, 65534)
        try:
            return str(holder(Path(path.name)))
        except NotPermitted as error:
            return str(error)

    outcome = run_isolated({"holder": as_another_user})["holder"]
    assert outcome.result == f"pid file {path.name}: Permission denied"


def test_a_file_that_replaced_the_pid_file_is_not_removed(path: Path) -> None:
    held = PidFile(path)
    path.unlink()
    path.write_text("another program's\n")
    held.remove()
    assert path.read_text() == "another program's\n"


def test_a_forked_child_does_not_hold_the_lock(path: Path) -> None:
    held = PidFile(path)
    outcome = run_isolated({"child": lambda: holder(path)})["child"]
    assert outcome.result == os.getpid()
    held.remove()
