"""`superd ban`, `unban` and `bans`: addresses that all services refuse for a time.

Runs in the command line, and asks the daemon. Raises SuperdError where it does not run or refuses.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import sys
import time
from pathlib import Path

from superd.cli.daemon import ask_daemon
from superd.cli.files import daemon_files
from superd.config.values import parse_duration
from superd.errors import ExitCode, UsageError
from superd.net.addresses import host_of, unmapped
from superd.net.patterns import IPNetwork, parse_network, shown_network

WIDE_PREFIXES = {4: 8, 6: 16}  # bits; a ban of a shorter prefix hits a large part of the internet
SSH_CLIENT = "SSH_CONNECTION"  # in the environment: the operator's address is its first word


def ban(file: Path | None, address: str, duration: str, reason: str, *, sure: bool) -> int:
    """Ban an address or a network. UsageError if that would hit much more than one attacker, unless
    the operator is sure.
    """
    try:
        seconds = parse_duration(duration)
    except ValueError as error:
        raise UsageError(f"--for: {error}") from None
    network = _network(address)
    if not sure and (hit := _hit_by(network)):
        _confirm(f"a ban of {shown_network(network)} hits {hit}")
    ask_daemon(daemon_files(file), "ban", address=str(network), seconds=seconds, reason=reason)
    return int(ExitCode.OK)


def _hit_by(network: IPNetwork) -> str:
    """Return what a ban would hit that the operator hardly means; "" for nothing."""
    own = os.environ.get(SSH_CLIENT, "").partition(" ")[0]
    for host, what in (("127.0.0.1", "this machine"), ("::1", "this machine"), (own, "you")):
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(unmapped(host)) in network:
                return f"{what} ({host})"
    if network.prefixlen < WIDE_PREFIXES[network.version]:
        return f"{network.num_addresses:,} addresses"
    return ""


def _confirm(what: str) -> None:
    """Ask on a terminal; UsageError if the operator declines, or if there is no terminal."""
    if sys.stdin.isatty() and sys.stderr.isatty():
        print(f"superd: {what}. Ban it? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
        raise UsageError("not banned")
    raise UsageError(f"{what}; --yes bans it all the same")


def unban(file: Path | None, address: str) -> int:
    """Lift a ban."""
    ask_daemon(daemon_files(file), "unban", address=str(_network(address)))
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


def _network(text: str) -> IPNetwork:
    """Return the network of an address in any form that superd prints."""
    try:
        return parse_network(host_of(text))
    except ValueError as error:
        raise UsageError(str(error)) from None
