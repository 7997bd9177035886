"""Answers the control socket's requests: JSON objects whose "request" names the command.

Runs in the master. Raises nothing for an invalid request: the answer says what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from superd.errors import ExitCode, shown
from superd.master.bans import OPERATOR
from superd.master.change.changes import Changes
from superd.master.context import Context
from superd.master.control_socket import Later, line_of
from superd.master.report.metrics import metrics
from superd.master.report.status import outline, status
from superd.master.workers.queries import ConnectionsQuery, KillQuery, TrafficQuery
from superd.master.workers.reopening import reopen_files
from superd.net.patterns import parse_network, shown_network
from superd.observe.records import LEVELS

Answer = dict[str, Any]

BUSY = "a reload or an upgrade is under way, or superd starts or stops; try again"


class Commands:
    """All that an operator can ask. A method's parameters are the other keys of its request."""

    def __init__(self, context: Context, changes: Changes) -> None:
        self._context = context
        self._changes = changes
        self._commands: dict[str, Callable[..., Answer | Later]] = {
            "status": self._status,
            "outline": self._outline,
            "metrics": self._metrics,
            "connections": self._connections,
            "kill": self._kill,
            "traffic": self._traffic,
            "bans": self._bans,
            "ban": self._ban,
            "unban": self._unban,
            "reopen": self._reopen,
            "reload": self._reload,
            "reload-state": self._reload_state,
            "upgrade": self._upgrade,
            "upgrade-state": self._upgrade_state,
            "forget-sockets": self._forget_sockets,
            "enable": self._enable,
            "log-level": self._log_level,
        }

    def answer(self, line: bytes) -> bytes | Later:
        """Return the answer to a request; an object with `error` if the request failed."""
        answer = self._answer(line)
        return line_of(answer) if isinstance(answer, dict) else answer

    def _answer(self, line: bytes) -> Answer | Later:
        try:
            arguments = json.loads(line)
            if not isinstance(arguments, dict) or not isinstance(arguments.get("request"), str):
                raise ValueError("not an object")
        except (ValueError, RecursionError):
            return {"error": 'expected a request such as {"request": "status"}'}
        name = arguments.pop("request")
        if name not in self._commands:
            return {"error": f"there is no request {shown(name)}, only {', '.join(self._commands)}"}
        try:
            return self._commands[name](**arguments)
        except (ValueError, TypeError, OverflowError) as error:
            return {"error": f"{name}: {error}"}

    def _status(self) -> Answer:
        return status(self._context)

    def _outline(self) -> Answer:
        return outline(self._context)

    def _metrics(self) -> Answer:
        return {"text": metrics(self._context)}

    def _connections(self, service: str | None = None) -> Answer | Later:
        known = {name for child in self._context.children for name in child.services}
        known |= self._context.current.plan.settings.services.keys()
        if service is not None and str(service) not in known:
            return {"error": f"there is no service {shown(service)}", "code": int(ExitCode.USAGE)}
        return ConnectionsQuery(self._context.slots, service)

    def _kill(self, id: str) -> Later:  # noqa: A002  the name that the request has
        return KillQuery(self._context.slots, str(id), self._context.log)

    def _traffic(self) -> Later:
        services = list(self._context.current.plan.services)
        return TrafficQuery(self._context.slots, self._context.tally.scoreboard, services)

    def _bans(self) -> Answer:
        return {"bans": self._context.bans.listed()}

    def _ban(self, address: str, seconds: float, reason: str = "") -> Answer:
        network, seconds = parse_network(str(address)), float(seconds)
        if error := self._context.bans.add(network, seconds, OPERATOR, str(reason)):
            return {"error": error}
        banned = f"banned {shown_network(network)} for {seconds:.0f} s"
        self._context.log.info(f"{banned} by the operator")
        self._context.ban_filters.update(self._context.current.listeners)
        return {}

    def _unban(self, address: str) -> Answer:
        network = parse_network(str(address))
        if not self._context.bans.lift(network):
            return {"error": f"{shown_network(network)} is not banned"}
        self._context.log.info(f"ban of {shown_network(network)} lifted by the operator")
        self._context.ban_filters.update(self._context.current.listeners)
        return {}

    def _reopen(self) -> Later:
        return reopen_files(self._context)

    def _reload(self) -> Answer:
        """Start a reload; `reload-state` reports its progress, by its number."""
        if not self._context.may_change:
            return {"error": BUSY}
        return {"number": self._changes.reload().number}

    def _enable(self, service: str, enabled: bool) -> Answer:
        """Enable or disable a service, whatever its entry says; the progress is a reload's."""
        if not isinstance(service, str) or not isinstance(enabled, bool):
            raise ValueError("expected a service's name, and true or false")
        if not self._context.may_change:
            return {"error": BUSY}
        if not enabled and self._context.current.plan.settings.enabled.keys() == {service}:
            text = f"service.{service}: it is the last service that is enabled"
            return {"error": text, "code": int(ExitCode.CONFIGURATION)}
        return {"number": self._changes.override(service, enabled=enabled).number}

    def _log_level(self, level: str | None = None) -> Answer:
        """Change the log level if `level` is given; return the level in force."""
        if level is not None:
            if level not in LEVELS:
                return {"error": f"there is no level {shown(level)}, only {', '.join(LEVELS)}"}
            self._context.log.set_level(level)
        return {"level": self._context.log.level}

    def _reload_state(self, number: int) -> Answer:
        for reload in self._context.reloads:
            if reload.number == number:
                return reload.report()
        return {"error": f"there is no reload {number}"}

    def _upgrade(self) -> Answer:
        """Start an upgrade; `upgrade-state` reports its progress, by its number, in the old program
        and in the new one.
        """
        if not self._context.may_change:
            return {"error": BUSY}
        return {"number": self._changes.start_upgrade().number}

    def _upgrade_state(self, number: int) -> Answer:
        upgrade = self._context.upgrade
        if upgrade is None or upgrade.number != number:
            return {"error": f"there is no upgrade {number}"}
        return upgrade.report()

    def _forget_sockets(self) -> Answer:
        """Have the service manager keep no socket, since superd stops and is not restarted."""
        self._context.notifier.fd_store.stays_empty = True
        return {}
