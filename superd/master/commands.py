"""What the control socket can be asked: objects of JSON, whose "request" says what is wanted.

Runs in the master. Never raises for what somebody asked: the answer says what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from superd.errors import ExitCode, shown
from superd.master.bans import OPERATOR
from superd.master.control_socket import Later, line_of
from superd.master.report.metrics import metrics
from superd.master.report.status import outline, status
from superd.master.workers.queries import Connections, Kill, Traffic
from superd.net.patterns import parse_network, shown_network
from superd.observe.records import LEVELS

if TYPE_CHECKING:
    from superd.master.master import Master

Answer = dict[str, Any]

BUSY = "a reload or an upgrade is under way, or superd starts or stops; try again"


def answer(master: Master, line: bytes) -> bytes | Later:
    """Return the answer to a request; an object with `error` where it cannot be fulfilled."""
    found = _answer(master, line)
    return line_of(found) if isinstance(found, dict) else found


def _answer(master: Master, line: bytes) -> Answer | Later:
    try:
        arguments = json.loads(line)
        if not isinstance(arguments, dict) or not isinstance(arguments.get("request"), str):
            raise ValueError("not an object")
    except (ValueError, RecursionError):
        return {"error": 'a request is a line such as {"request": "status"}'}
    word = arguments.pop("request")
    if word not in REQUESTS:
        return {"error": f"there is no request {shown(word)}, only {', '.join(REQUESTS)}"}
    try:
        return REQUESTS[word](master, **arguments)
    except (ValueError, TypeError, OverflowError) as error:
        return {"error": f"{word}: {error}"}


def _status(master: Master) -> Answer:
    return status(master)


def _outline(master: Master) -> Answer:
    return outline(master)


def _metrics(master: Master) -> Answer:
    return {"text": metrics(master)}


def _connections(master: Master, service: str | None = None) -> Answer | Later:
    known = {
        name for place in master.workers.places if place.child for name in place.child.services
    }
    known |= master.current.plan.settings.services.keys()
    if service is not None and str(service) not in known:
        return {"error": f"there is no service {shown(service)}", "code": int(ExitCode.USAGE)}
    return Connections(master.workers.places, service)


def _kill(master: Master, id: str) -> Later:  # noqa: A002  the name that the request has
    return Kill(master.workers.places, str(id), master.log)


def _traffic(master: Master) -> Later:
    return Traffic(
        master.workers.places, master.tally.scoreboard, list(master.current.plan.services)
    )


def _bans(master: Master) -> Answer:
    return {"bans": master.bans.listed()}


def _ban(master: Master, address: str, seconds: float, reason: str = "") -> Answer:
    network, seconds = parse_network(str(address)), float(seconds)
    error = master.bans.add(network, seconds, OPERATOR, str(reason))
    if not error:
        master.log.info(f"banned {shown_network(network)} for {seconds:.0f} s, by the operator")
    return {"error": error} if error else {}


def _unban(master: Master, address: str) -> Answer:
    network = parse_network(str(address))
    if not master.bans.lift(network):
        return {"error": f"{shown_network(network)} is not banned"}
    master.log.info(f"{shown_network(network)} is not banned any more, by the operator")
    return {}


def _reopen(master: Master) -> Answer:
    failures = master.reopen_logs()
    return {"error": "; ".join(failures)} if failures else {}


def _reload(master: Master) -> Answer:
    """Start a reload; how it goes is to be asked for by its number."""
    if not master.may_change:
        return {"error": BUSY}
    return {"number": master.changes.reload().number}


def _enable(master: Master, service: str, enabled: bool) -> Answer:
    """Have a service served, or not, whatever its entry says; goes on as a reload does."""
    if not isinstance(service, str) or not isinstance(enabled, bool):
        raise ValueError("expected a service's name, and true or false")
    if not master.may_change:
        return {"error": BUSY}
    if not enabled and master.current.plan.settings.enabled.keys() == {service}:
        text = f"service.{service}: it is the last service that is enabled"
        return {"error": text, "code": int(ExitCode.CONFIGURATION)}
    return {"number": master.changes.override(service, enabled=enabled).number}


def _log_level(master: Master, level: str | None = None) -> Answer:
    """Tell which level is logged from, after changing it if one is named."""
    if level is not None:
        if level not in LEVELS:
            return {"error": f"there is no level {shown(level)}, only {', '.join(LEVELS)}"}
        master.log.log_from(level)
    return {"level": master.log.level}


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


REQUESTS: dict[str, Callable[..., Answer | Later]] = {
    "status": _status,
    "outline": _outline,
    "metrics": _metrics,
    "connections": _connections,
    "kill": _kill,
    "traffic": _traffic,
    "bans": _bans,
    "ban": _ban,
    "unban": _unban,
    "reopen": _reopen,
    "reload": _reload,
    "reload-state": _reload_state,
    "upgrade": _upgrade,
    "upgrade-state": _upgrade_state,
    "forget-sockets": _forget_sockets,
    "enable": _enable,
    "log-level": _log_level,
}
