"""Judges before a client comes whether execve(2) would run a program.

Runs in the preflight, with the user and the root directory of the service's workers. Looks only;
`mistake_in` never raises.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

BINFMT_MISC = Path("/proc/sys/fs/binfmt_misc")  # formats that the kernel runs besides its own
HEAD_BYTES = 256  # in which the kernel looks for an interpreter (execve(2))
MAX_INTERPRETERS = 4  # an interpreter may be a script, too

ELF = b"\x7fELF"
IS_64_BIT, IS_LITTLE_ENDIAN = 2, 1  # e_ident (elf(5))
PT_INTERP = 3


def names_in(directories: Iterable[str]) -> list[str]:
    """Return the names of all files in these directories, as far as they can be read."""
    names: set[str] = set()
    for directory in directories:
        with contextlib.suppress(OSError):
            names.update(os.listdir(directory))
    return sorted(names)


def mistake_in(program: str, path: str, depth: int = 0) -> str:
    """Return why a program cannot be run; "" if nothing is seen. `path` is PATH, for env(1)."""
    try:
        status = os.stat(program)
    except OSError as error:
        return _without_access(program, error)
    if not stat.S_ISREG(status.st_mode):
        return f"{program} is not a regular file"
    if not os.access(program, os.X_OK):
        return _not_executable(program, status)
    try:
        with open(program, "rb") as file:
            head = file.read(HEAD_BYTES)
            loader = _loader_of(head, file.fileno())
    except OSError:  # a program may be executable and not readable
        return ""
    if head.startswith(b"#!"):
        return _mistake_in_script(program, head, path, depth)
    if loader and not os.path.exists(loader):
        return f"{program} needs the loader {loader}, which is not there"
    if not head.startswith(ELF) and not _has_other_formats():
        return f"{program} is neither a program nor a script that starts with #!"
    return ""


def _without_access(program: str, error: OSError) -> str:
    """Name the directory that is missing, or that this user may not search."""
    for directory in reversed(Path(program).parents):
        if not os.path.isdir(directory):
            return f"{program} does not exist: there is no directory {directory}"
        if not os.access(directory, os.X_OK):
            return f"the service's user may not search {directory}, where {program} is"
    return f"{program}: {os.strerror(error.errno or 0)}"


def _not_executable(program: str, status: os.stat_result) -> str:
    if os.statvfs(program).f_flag & os.ST_NOEXEC:
        return f"{program} is on a file system that is mounted with noexec"
    if not status.st_mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH):
        return f"{program} is not executable; chmod +x makes it so"
    return f"the service's user may not execute {program}"


def _mistake_in_script(program: str, head: bytes, path: str, depth: int) -> str:
    line = os.fsdecode(head[2:].partition(b"\n")[0])
    if line.endswith("\r"):
        return f"the first line of {program} ends with CR LF; its interpreter would be {line!r}"
    interpreter, *arguments = line.split(maxsplit=1) or [""]
    if not interpreter.startswith("/"):
        return f"the interpreter of {program} is no absolute path: {line!r}"
    if os.path.basename(interpreter) == "env" and arguments and arguments[0][0] != "-":
        wanted = arguments[0].split()[0]
        if "=" not in wanted and shutil.which(wanted, path=path) is None:
            return f"{program} needs the interpreter {wanted}, which is not in PATH ({path})"
    if depth < MAX_INTERPRETERS and (mistake := mistake_in(interpreter, path, depth + 1)):
        return f"the interpreter of {program}: {mistake}"
    return ""


def _loader_of(head: bytes, descriptor: int) -> str:
    """Return the dynamic loader that an ELF program names; "" for none (elf(5))."""
    if not head.startswith(ELF) or head[5] != IS_LITTLE_ENDIAN:
        return ""
    is_64_bit = head[4] == IS_64_BIT
    number = _number(head, 56 if is_64_bit else 44, 2)
    size = _number(head, 54 if is_64_bit else 42, 2)
    start = _number(head, 32 if is_64_bit else 28, 8 if is_64_bit else 4)
    table = os.pread(descriptor, number * size, start)
    for entry in (table[n * size : (n + 1) * size] for n in range(number)):
        if _number(entry, 0, 4) == PT_INTERP:
            width = 8 if is_64_bit else 4
            offset = _number(entry, 8 if is_64_bit else 4, width)
            length = _number(entry, 32 if is_64_bit else 16, width)
            return os.fsdecode(os.pread(descriptor, length, offset).rstrip(b"\0"))
    return ""


def _number(data: bytes, offset: int, width: int) -> int:
    return int.from_bytes(data[offset : offset + width], "little")


def _has_other_formats() -> bool:
    """Return whether the kernel may run other formats: unknown where /proc is missing."""
    try:
        return bool({*os.listdir(BINFMT_MISC)} - {"register", "status"})
    except OSError:
        return True
