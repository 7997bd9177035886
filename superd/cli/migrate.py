"""`superd migrate`: another superserver's configuration as TOML.

Runs in the command line. The configuration goes to standard output; what is different, or was left
out, to standard error with file and line. Raises SuperdError where a file cannot be read.
"""

from __future__ import annotations

import sys
from pathlib import Path

from superd.config.migrating import inetd, xinetd
from superd.config.migrating.entries import as_toml
from superd.errors import ExitCode, SuperdError, printable, reason


def migrate(dialect: str, path: Path) -> int:
    """Write TOML that `superd check` takes."""
    try:
        if dialect == "inetd":
            text = path.read_bytes().decode(errors="backslashreplace")
            entries, notes = inetd.read(text, str(path))
        else:
            entries, notes = xinetd.read(path)
    except OSError as error:
        raise SuperdError(f"cannot read {reason(error)}") from None
    for note in notes:
        print(printable(str(note)), file=sys.stderr)
    if any(entry.keys["plugin"] == "exec" for entry in entries):
        print(
            f"{path}: standard error goes to the log and not to the client;"
            ' options = { stderr = "client" } changes that',
            file=sys.stderr,
        )
    if not entries:
        raise SuperdError(f"there is no service in {path} that superd could serve")
    print(as_toml(entries), end="")
    return int(ExitCode.OK)
