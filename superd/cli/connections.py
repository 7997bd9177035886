"""`superd connections` and `superd kill`: list the open connections, and close one.

Runs in the command line, and asks the daemon. Raises SuperdError where it does not run, or where
there is no such service or connection.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from superd.cli.daemon import ask_daemon
from superd.cli.figures import UNKNOWN, age, size
from superd.cli.files import daemon_files, no_such_service, services_in
from superd.errors import ExitCode, SuperdError, shown
from superd.observe.rows import table


def connections(file: Path | None, service: str | None, *, as_json: bool) -> int:
    """List the connections of all services, or of one; exit 1 if the list is incomplete."""
    try:
        answer = ask_daemon(daemon_files(file), "connections", service=service)
    except SuperdError as error:
        if service is None or error.exit_code != ExitCode.USAGE:
            raise
        known = services_in(file)
        if service in known:
            text = f"there is no service {shown(service)}; a new one takes a reload"
            raise SuperdError(text) from None
        raise no_such_service(service, known) from None
    rows = sorted(answer["connections"], key=lambda row: (row["service"], -row["age"]))
    if as_json:
        print(json.dumps({**answer, "connections": rows}, indent=2))
    else:
        print("\n".join(table([_shown(row) for row in rows]) or ["no open connections"]))
    for one in answer["untold"]:
        text = f"worker {one['worker']} of generation {one['generation']} did not answer"
        print(f"superd: {text}; some or all of its connections are missing here", file=sys.stderr)
    if answer["left-out"]:
        print(f"superd: {answer['left-out']} more connections are missing here", file=sys.stderr)
    return int(ExitCode.FAILED if answer["untold"] or answer["left-out"] else ExitCode.OK)


def kill(file: Path | None, connection: str) -> int:
    """Close one connection."""
    ask_daemon(daemon_files(file), "kill", id=connection)
    return int(ExitCode.OK)


def _shown(row: dict[str, Any]) -> dict[str, str | int | float]:
    counts = {key: UNKNOWN if row[key] is None else size(row[key]) for key in ("in", "out")}
    return {
        "id": row["id"],
        "service": row["service"],
        "peer": row["peer"] or UNKNOWN,
        "local": row["local"],
        "age": age(row["age"]),
        **counts,
        "state": row["state"],
        "target": row["target"] or UNKNOWN,
        "worker": row["worker"],
        "generation": row["generation"],
    }
