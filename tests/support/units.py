"""Runs a command as a systemd unit would, as far as that is possible without systemd.

Used as a wrapper: `python units.py UNIT DIRECTORY COMMAND...`, as root and in its own mount
namespace. Applies the unit's capabilities, NoNewPrivileges, DynamicUser, the two settings of
/proc, ProtectSystem=strict (DIRECTORY stays writable), MemoryDenyWriteExecute,
RestrictAddressFamilies and SystemCallFilter.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from pathlib import Path

SELF = Path(__file__)
UNITS = SELF.parents[2] / "conf" / "systemd"
DYNAMIC_ID = "61234"  # a user id such as systemd allocates for DynamicUser
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1  # Linux 6.3
ALLOW, EPERM = 0x7FFF0000, 0x00050001  # SCMP_ACT_ALLOW, SCMP_ACT_ERRNO(EPERM)
EQUAL = 4  # SCMP_CMP_EQ


class Comparison(ctypes.Structure):
    """struct scmp_arg_cmp"""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def wrapper(unit: str, directory: Path) -> tuple[str, ...]:
    """Return the words to put before a command."""
    return ("unshare", "--mount", sys.executable, str(SELF), str(UNITS / unit), str(directory))


def settings(unit: Path) -> dict[str, list[str]]:
    """Return the words of each setting of a unit, line by line."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def confine(unit: Path, directory: str, command: list[str]) -> None:
    """Apply the settings that need root, then run this file again without it for the filter."""
    wanted = settings(unit)
    for mount in (
        ["--make-rprivate", "/"],
        ["--bind", directory, directory],
        *([["-o", "remount,bind,ro", "/"]] if wanted.get("ProtectSystem") or is_dynamic(wanted)
          else []),
        ["-t", "proc", "-o", "subset=pid,hidepid=invisible", "proc", "/proc"],
    ):  # fmt: skip
        subprocess.run(["mount", *mount], check=True)
    ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
    names = wanted["CapabilityBoundingSet"][0].lower().replace("cap_", "+").split()
    if is_dynamic(wanted):
        names.append("+dac_read_search")  # the tests' Python may be in root's home
    with_capabilities = ["setpriv", f"--bounding-set=-all,{','.join(names)}", "--no-new-privs"]
    if is_dynamic(wanted):
        with_capabilities += [
            f"--reuid={DYNAMIC_ID}",
            f"--regid={DYNAMIC_ID}",
            "--clear-groups",
        ]
        with_capabilities += [
            f"--{kind}-caps=-all,{','.join(names)}" for kind in ("inh", "ambient")
        ]
    python = [sys.executable, str(SELF), str(unit), "", *command]
    os.execvp(with_capabilities[0], [*with_capabilities, *python])


def is_dynamic(wanted: dict[str, list[str]]) -> bool:
    return wanted.get("DynamicUser") == ["yes"]


def apply_filter(unit: Path, command: list[str]) -> None:
    """Allow only the unit's system calls, and execute the command."""
    wanted = settings(unit)
    allowed: set[str] = set()
    for value in wanted["SystemCallFilter"]:
        if value.startswith("~"):
            allowed -= system_calls(value[1:].split())
        else:
            allowed |= system_calls(value.split())
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(EPERM))
    for name in sorted(allowed - {"socket"}):
        number = library.seccomp_syscall_resolve_name(name.encode())
        library.seccomp_rule_add(context, ALLOW, number, 0)
    number = library.seccomp_syscall_resolve_name(b"socket")
    for family in wanted["RestrictAddressFamilies"][0].split():
        one = Comparison(0, EQUAL, int(getattr(socket, family)), 0)
        library.seccomp_rule_add_array(context, ALLOW, number, 1, ctypes.byref(one))
    if library.seccomp_load(context):
        sys.exit("cannot load the seccomp filter")
    os.execvp(command[0], command)


def system_calls(words: list[str]) -> set[str]:
    """Return the system calls that the words of SystemCallFilter= name."""
    found: set[str] = set()
    for word in words:
        if not word.startswith("@"):
            found.add(word)
            continue
        listed = subprocess.run(
            ["systemd-analyze", "--no-pager", "syscall-filter", word],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        lines = [line.strip() for line in listed.splitlines()[1:]]
        found |= system_calls([line for line in lines if line and not line.startswith("#")])
    return found


if __name__ == "__main__":
    if sys.argv[2]:
        confine(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
    else:
        apply_filter(Path(sys.argv[1]), sys.argv[3:])
