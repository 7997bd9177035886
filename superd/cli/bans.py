"""`superd ban`, `unban` and `bans`: addresses that all services refuse for a time.

Runs in the command line, and asks the daemon. Raises SuperdError where it does not run or refuses.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from superd.cli.daemon import ask_daemon
from superd.cli.files import daemon_files
from superd.config.values import parse_duration
from superd.errors import ExitCode, UsageError
from superd.net.patterns import parse_network


def ban(file: Path | None, address: str, duration: str, reason: str) -> int:
    """Ban an address or a network."""
    try:
        seconds = parse_duration(duration)
    except ValueError as error:
        raise UsageError(f"--for: {error}") from None
    ask_daemon(daemon_files(file), "ban", address=_network(address), seconds=seconds, reason=reason)
    return int(ExitCode.OK)


def unban(file: Path | None, address: str) -> int:
    """Lift a ban."""
    ask_daemon(daemon_files(file), "unban", address=_network(address))
    return int(ExitCode.OK)


def bans(file: Path | None, *, as_json: bool) -> int:
    """List all bans."""
    found = ask_daemon(daemon_files(file), "bans")["bans"]
    if as_json:
        print(json.dumps(found, indent=2))
        return int(ExitCode.OK)
    width = max((len(one["network"]) for one in found), default=0)
    for one in found:
        until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["until"]))
        why = f"  {one['reason']}" if one["reason"] else ""
        print(f"{one['network']:<{width}}  until {until}  by {one['by']}{why}")
    return int(ExitCode.OK)


def _network(text: str) -> str:
    try:
        return str(parse_network(text))
    except ValueError as error:
        raise UsageError(str(error)) from None
