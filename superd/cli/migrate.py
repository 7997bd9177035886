"""`superd migrate`: converts the configuration of inetd or xinetd to TOML.

Runs in the command line; plugins run in child processes. The configuration goes to standard output;
a note for each difference or omission, with file and line, to standard error. Raises SuperdError
where a file cannot be read.
"""

from __future__ import annotations

import sys
from pathlib import Path

from superd.config.loading import Configuration
from superd.errors import ExitCode, Problem, SuperdError, printable, reason
from superd.master.plan.preflight import preflight
from superd.migrate import inetd, xinetd
from superd.migrate.entries import Entry, Note, as_toml
from superd.migrate.programs import keep_privileges
from superd.migrate.proving import comment_out_rejected
from superd.plugin.registry import installed

# notes on all services of a kind, and not on one line
NOTES_ON_PROGRAMS = (
    'standard error goes to the log and not to the client; options = { stderr = "client" } changes'
    " that",
    "no-new-privs keeps programs from gaining privileges as set-user-ID ones do",
)
NOTES_ON_INTERNAL_SERVICES = (
    "an internal service runs as nobody and not as root, unless the entry has a user",
)
NOTES_ON_REDIRECTS = (
    "a redirect runs as nobody and not as root, unless the entry has another user",
    "a redirected connection continues in one direction once the other has ended, where xinetd"
    " ends both; see half-close-timeout",
)
NOTES_ON_INETD = (
    "programs have only their own group, and only PATH in their environment; see groups and"
    " pass-env",
    "without a limit every client is served; inetd closes a port after many connections within a"
    " minute: 40 (NetBSD), 256 (OpenBSD, FreeBSD) or 1000 (GNU)",
)
NOTES_ON_IPV4 = (
    "tcp and udp are IPv4 only, as in the BSDs and GNU; Debian's inetd accepts IPv6, too: tcp://*",
)
NOTES_ON_XINETD = (
    "hosts.allow and hosts.deny are not read, with or without NOLIBWRAP; see allow and deny",
    "without cps every client is served; xinetd closes a port for 10 s after 50 connections in a"
    " second",
)


def migrate(dialect: str, path: Path) -> int:
    """Print TOML that passes `superd check`."""
    try:
        if dialect == "inetd":
            text = path.read_bytes().decode(errors="surrogateescape")
            entries, notes = inetd.read(text, str(path))
        else:
            entries, notes = xinetd.read(path)
    except OSError as error:
        text = f"cannot read {error.filename or path}: {error.strerror or reason(error)}"
        raise SuperdError(text) from None
    notes += keep_privileges(entries)
    notes += comment_out_rejected(entries, _problems)
    for note in _in_order(notes):
        print(printable(str(note)), file=sys.stderr)
    if all(entry.is_comment for entry in entries):
        raise SuperdError(f"{path} has no service that superd can serve")
    for text in _general_notes(dialect, entries):
        print(printable(f"{path}: {text}"), file=sys.stderr)
    print(as_toml(entries), end="")
    return int(ExitCode.OK)


def _problems(configuration: Configuration) -> list[Problem]:
    return preflight(configuration, installed(), prepare=False).all_problems(configuration)


def _in_order(notes: list[Note]) -> list[Note]:
    """Return the notes by file, in the order of their first note, and by line."""
    files = list(dict.fromkeys(note.file for note in notes))
    return sorted(notes, key=lambda note: (files.index(note.file), note.line))


def _general_notes(dialect: str, entries: list[Entry]) -> list[str]:
    """Return the notes that hold for all services together."""
    plugins = {entry.keys["plugin"] for entry in entries if not entry.is_comment}
    notes = [*NOTES_ON_PROGRAMS] if "exec" in plugins else []
    notes += NOTES_ON_INTERNAL_SERVICES if plugins - {"exec", "forward"} else ()
    notes += NOTES_ON_REDIRECTS if "forward" in plugins else ()
    if dialect == "inetd":
        notes += NOTES_ON_INETD if "exec" in plugins else NOTES_ON_INETD[1:]
        notes += (
            NOTES_ON_IPV4 if any("//0.0.0.0:" in str(one.keys["listen"]) for one in entries) else ()
        )
    else:
        notes += NOTES_ON_XINETD
    if not any(entry.is_served for entry in entries):
        notes.append("no service is enabled; `superd check` expects one")
    return notes
