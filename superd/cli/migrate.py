"""`superd migrate`: another superserver's configuration as TOML.

Runs in the command line; plugins run in processes that are thrown away. The configuration goes to
standard output; what is different, or was left out, to standard error with file and line. Raises
SuperdError where a file cannot be read.
"""

from __future__ import annotations

import sys
from pathlib import Path

from superd.config.loading import Configuration
from superd.errors import ExitCode, Problem, SuperdError, printable, reason
from superd.master.plan.preflight import preflight
from superd.migrate import inetd, xinetd
from superd.migrate.entries import Entry, Note, as_toml
from superd.migrate.proving import prove
from superd.plugin.registry import installed

# what is so for all services, and cannot be told of any one line
OF_PROGRAMS = (
    'standard error goes to the log and not to the client; options = { stderr = "client" } changes'
    " that",
    "no-new-privs keeps programs from gaining privileges as set-user-ID ones do",
)
OF_INTERNAL = ("who answers by itself runs as nobody and not as root, unless there is a user",)
OF_REDIRECTS = (
    "who redirects runs as nobody and not as root, unless there is another user",
    "what is redirected goes on one way once the other has ended, where xinetd ends both; see"
    " half-close-timeout",
)
OF_INETD = (
    "programs have no groups but their own, and only PATH in their environment; see groups and"
    " pass-env",
    "without a limit everybody is served; inetd closes a port where many come within a minute, 40"
    " (NetBSD), 256 (OpenBSD, FreeBSD) or 1000 (GNU)",
)
OF_IPV4 = (
    "tcp and udp are IPv4 only, as to the BSDs and GNU; Debian's inetd takes IPv6, too: tcp://*",
)
OF_XINETD = (
    "hosts.allow and hosts.deny are not asked, with or without NOLIBWRAP; see allow and deny",
    "without cps everybody is served; xinetd closes a port for 10 s after 50 in a second",
)


def migrate(dialect: str, path: Path) -> int:
    """Write TOML that `superd check` takes."""
    try:
        if dialect == "inetd":
            text = path.read_bytes().decode(errors="surrogateescape")
            entries, notes = inetd.read(text, str(path))
        else:
            entries, notes = xinetd.read(path)
    except OSError as error:
        raise SuperdError(f"cannot read {reason(error)}") from None
    notes += prove(entries, _problems)
    for note in _in_order(notes):
        print(printable(str(note)), file=sys.stderr)
    if all(entry.is_comment for entry in entries):
        raise SuperdError(f"there is no service in {path} that superd could serve")
    for text in _about_all(dialect, entries):
        print(printable(f"{path}: {text}"), file=sys.stderr)
    print(as_toml(entries), end="")
    return int(ExitCode.OK)


def _problems(configuration: Configuration) -> list[Problem]:
    return preflight(configuration, installed(), prepare=False).all_problems(configuration)


def _in_order(notes: list[Note]) -> list[Note]:
    """Return notes by line, and by file in the order in which something was told of them."""
    files = list(dict.fromkeys(note.file for note in notes))
    return sorted(notes, key=lambda note: (files.index(note.file), note.line))


def _about_all(dialect: str, entries: list[Entry]) -> list[str]:
    """Return what is different for all services together."""
    plugins = {entry.keys["plugin"] for entry in entries if not entry.is_comment}
    told = [*OF_PROGRAMS] if "exec" in plugins else []
    told += OF_INTERNAL if plugins - {"exec", "forward"} else ()
    told += OF_REDIRECTS if "forward" in plugins else ()
    if dialect == "inetd":
        told += OF_INETD if "exec" in plugins else OF_INETD[1:]
        told += OF_IPV4 if any("//0.0.0.0:" in str(one.keys["listen"]) for one in entries) else ()
    else:
        told += OF_XINETD
    if not any(entry.is_served for entry in entries):
        told.append("no service is enabled, and `superd check` wants one")
    return told
