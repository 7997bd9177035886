"""What the control socket can be asked: a word, and for some an object of JSON behind it.

Runs in the master. Never raises for what somebody asked: the answer says what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from superd.errors import shown
from superd.master.metrics import metrics
from superd.master.status import status
from superd.net.patterns import parse_network, shown_network

if TYPE_CHECKING:
    from superd.master.master import Master

Answer = dict[str, Any]

BUSY = "a reload or an upgrade is under way, or superd starts or stops; try again"


def answer(master: Master, request: str) -> Answer:
    """Return the answer to a request; an object with `error` where it cannot be fulfilled."""
    word, _, rest = request.partition(" ")
    if word not in REQUESTS:
        return {"error": f"there is no request {shown(word)}, only {', '.join(REQUESTS)}"}
    try:
        arguments = json.loads(rest) if rest else {}
        if not isinstance(arguments, dict):
            raise ValueError("expected an object")
        return REQUESTS[word](master, **arguments)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        return {"error": f"{word}: {error}"}


def _status(master: Master) -> Answer:
    return status(master)


def _metrics(master: Master) -> Answer:
    return {"text": metrics(master)}


def _bans(master: Master) -> Answer:
    return {"bans": master.bans.listed()}


def _ban(master: Master, address: str, seconds: float, reason: str = "") -> Answer:
    network = parse_network(str(address))
    error = master.bans.add(network, float(seconds), "operator", str(reason))
    if not error:
        master.log.info(f"banned {shown_network(network)} for {seconds:.0f} s, by the operator")
    return {"error": error} if error else {}


def _unban(master: Master, address: str) -> Answer:
    network = parse_network(str(address))
    if not master.bans.lift(network):
        return {"error": f"{shown_network(network)} is not banned"}
    master.log.info(f"{shown_network(network)} is not banned any more, by the operator")
    return {}


def _reload(master: Master) -> Answer:
    """Start a reload; how it goes is to be asked for by its number."""
    if not master.may_change:
        return {"error": BUSY}
    return {"number": master.changes.reload().number}


def _reload_state(master: Master, number: int) -> Answer:
    for reload in master.changes.reloads:
        if reload.number == number:
            return reload.report()
    return {"error": f"there is no reload {number}"}


def _upgrade(master: Master) -> Answer:
    """Start an upgrade; how it goes is to be asked for by its number, of both programs."""
    if not master.may_change:
        return {"error": BUSY}
    return {"number": master.changes.start_upgrade().number}


def _upgrade_state(master: Master, number: int) -> Answer:
    if master.changes.upgrade is None or master.changes.upgrade.number != number:
        return {"error": f"there is no upgrade {number}"}
    return master.changes.upgrade.report()


def _forget_sockets(master: Master) -> Answer:
    """Have the supervisor keep no socket, as superd is about to be stopped for good."""
    master.supervisor.store.stays_empty = True
    return {}


REQUESTS: dict[str, Callable[..., Answer]] = {
    "status": _status,
    "metrics": _metrics,
    "bans": _bans,
    "ban": _ban,
    "unban": _unban,
    "reload": _reload,
    "reload-state": _reload_state,
    "upgrade": _upgrade,
    "upgrade-state": _upgrade_state,
    "forget-sockets": _forget_sockets,
}
