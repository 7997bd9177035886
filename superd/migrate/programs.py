"""What programs need beside their command: their groups, their privileges, and their script.

Runs in the command line, on the machine whose configuration is migrated. Never raises.
"""

from __future__ import annotations

import contextlib
import grp
import os
import posixpath
import pwd
import stat
from collections.abc import Iterable

from superd.migrate.entries import Entry, Note

FILE_CAPABILITIES = "security.capability"  # the extended attribute (capabilities(7))


def keep_privileges(entries: Iterable[Entry]) -> list[Note]:
    """Let programs that gain privileges keep them; return a note on each."""
    notes = []
    for entry in entries:
        command = entry.keys.get("options", {}).get("command", "")
        program = command if isinstance(command, str) else command[0]
        if entry.keys["plugin"] == "exec" and (what := _privilege_of(program)):
            entry.keys["no-new-privs"] = False
            text = f"{program} {what}: written with no-new-privs = false, so that it has effect"
            notes.append(Note(entry.file, entry.line, text))
    return notes


def name_note(program: str, name: str) -> str | None:
    """Return a note where the name that a program is called by (argv[0]) looks like an argument."""
    base = posixpath.basename(name).lstrip("-")
    is_known = base == posixpath.basename(program) or posixpath.basename(program) == "tcpd"
    if is_known or not ("/" in name or name.startswith("-")):
        return None
    return (
        f"{program} is called by the name {name}, which is not an argument; for the argument, put"
        f" {name} into command and remove argv0"
    )


def supplementary_groups(user: str) -> list[str | int] | None:
    """Return the groups that a user has beside its own; None if there is no such user here."""
    if not user:
        return []
    try:
        known = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
        numbers = os.getgrouplist(known.pw_name, known.pw_gid)
    except (KeyError, OverflowError, ValueError):
        return None
    return [_group_name(number) for number in numbers if number != known.pw_gid]


def _group_name(number: int) -> str | int:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return number


def _privilege_of(program: str) -> str:
    with contextlib.suppress(OSError, ValueError):
        mode = os.stat(program).st_mode
        if mode & stat.S_ISUID:
            return "is set-user-ID"
        if mode & stat.S_ISGID:
            return "is set-group-ID"
        os.getxattr(program, FILE_CAPABILITIES)
        return "has file capabilities"
    return ""
