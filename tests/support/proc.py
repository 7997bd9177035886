"""Reads the privileges, limits and descriptors of a process from /proc (proc(5)).

Runs in the test's process. Needs root: only root may read about a confined worker.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

NOBODY = 65534
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
NO_CAPABILITY = "0" * 16
CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


@dataclass(frozen=True)
class Descriptor:
    """One open descriptor of a process."""

    number: int
    target: str
    flags: int
    is_directory: bool

    @property
    def is_inherited(self) -> bool:
        """Whether a program that the process starts would inherit it."""
        return not self.flags & os.O_CLOEXEC


def threads(pid: int) -> list[dict[str, str]]:
    """Return the status of each thread, by key."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        found.append({k: v.strip() for k, _, v in (line.partition(":") for line in lines)})
    return found


def limits(pid: int) -> dict[str, tuple[str, str]]:
    """Return the soft and the hard limit of each resource, by the kernel's name for it."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    columns = [re.split(r" {2,}", line.strip()) for line in lines]
    return {name: (soft, hard) for name, soft, hard, *_ in columns}


def niceness(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[16])


def session(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[3])


def terminal(pid: int) -> int:
    """Return the number of the controlling terminal; 0 if there is none."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[4])


def memory(pid: int) -> int:
    """Return the resident set in kB."""
    return int(threads(pid)[0]["VmRSS"].split()[0])


def zombies(pid: int) -> list[int]:
    """Return the children of `pid` that have ended and are not reaped yet."""
    found = []
    for child in children(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            line = Path(f"/proc/{child}/stat").read_text()
            if line.rpartition(")")[2].split()[0] == "Z":
                found.append(child)
    return found


def children(pid: int) -> list[int]:
    """Return the child processes of `pid`."""
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def become_subreaper() -> None:
    """Have this process adopt its descendants whose parents end (PR_SET_CHILD_SUBREAPER)."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def running_children() -> dict[int, str]:
    """Return the command lines of this process's children that have not ended, by process id."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        for name in (task / "children").read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if command_line := Path(f"/proc/{name}/cmdline").read_bytes():  # not a zombie
                    found[int(name)] = command_line.replace(b"\0", b" ").decode(errors="replace")
    return found


def descendants(pid: int) -> list[int]:
    """Return the children of `pid`, their children, and so on."""
    found: list[int] = []
    to_visit = [pid]
    while to_visit:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            new = children(to_visit.pop())
            found += new
            to_visit += new
    return found


def descriptor_names(pid: int) -> list[str]:
    """Return the numbers of a process's open descriptors; skip the test where only root sees them.

    A worker is not dumpable, which hides them from its own user, too.
    """
    try:
        return os.listdir(f"/proc/{pid}/fd")
    except PermissionError:
        pytest.skip("needs root: Linux hides the descriptors of a worker")


def descriptors(pid: int) -> list[Descriptor]:
    found = []
    for name in descriptor_names(pid):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            link = f"/proc/{pid}/fd/{name}"
            info = Path(f"/proc/{pid}/fdinfo/{name}").read_text()
            flags = re.search(r"^flags:\s*([0-7]+)$", info, re.MULTILINE)
            assert flags
            is_directory = stat.S_ISDIR(os.stat(link).st_mode)
            found.append(Descriptor(int(name), os.readlink(link), int(flags[1], 8), is_directory))
    return found


def inode_link(port: int, kind: str = "tcp") -> str:
    """Return the link, `socket:[INODE]`, of the socket that listens on a port."""
    for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
        columns = line.split()
        local, remote, inode = columns[1], columns[2], columns[9]
        if int(local.rpartition(":")[2], 16) == port and remote.endswith(":0000"):
            return f"socket:[{inode}]"
    raise LookupError(f"no socket listens on {kind} port {port}")


def assert_powerless(pid: int, user: int, group: int, groups: tuple[int, ...] = ()) -> None:
    """Check that every thread of a worker has the right ids and no capability."""
    for thread in threads(pid):
        assert thread["Uid"].split() == [str(user)] * 4
        assert thread["Gid"].split() == [str(group)] * 4
        assert thread["Groups"].split() == [str(number) for number in groups]
        assert {name: thread[name] for name in CAPABILITY_SETS} == dict.fromkeys(
            CAPABILITY_SETS, NO_CAPABILITY
        )
        assert thread["NoNewPrivs"] == "1"
        assert thread["SigBlk"] == NO_CAPABILITY
    assert os.stat(f"/proc/{pid}/fd").st_uid == 0, "the worker is dumpable"
    assert limits(pid)["Max core file size"] == ("0", "0")
    assert session(pid) == pid


def assert_no_descriptor_leaks(pid: int, foreign: set[str]) -> None:
    """Check that a worker has no directory, no inheritable and no `foreign` descriptor."""
    found = descriptors(pid)
    assert found[0].target == "/dev/null"
    assert not [one for one in found if one.is_directory]
    assert not [one for one in found if one.is_inherited and one.number > 2]
    assert not foreign & {one.target for one in found}
