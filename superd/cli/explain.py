"""`superd explain`: shows whether a client would be admitted, and by which line of the files.

Runs in the command line and applies the same rules as the workers. It decides by the files; from a
running daemon it takes the bans, and the services that an operator has enabled or disabled. Raises
ConfigurationError, UsageError, and SuperdError where the daemon serves another file.
"""

from __future__ import annotations

import ipaddress
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from superd.admission.access import AccessList, Rule, UnixPeer, Verdict
from superd.admission.refusals import Refusal
from superd.admission.rules import Who, access_list
from superd.admission.times import AccessTimes
from superd.cli.daemon import ServesAnotherFile, connected
from superd.cli.files import DaemonFiles, daemon_files, no_such_service, read
from superd.config.loading import Configuration
from superd.config.model import Service
from superd.errors import ExitCode, SuperdError, UsageError, shown
from superd.master.bans import Ban, ban_of, saved
from superd.master.plan.plan import unused_rules_notice
from superd.net.addresses import host_of
from superd.net.names import confirmed_name
from superd.net.patterns import HostName, User, parse_pattern, shown_network

Decision = tuple[Refusal | None, str]  # None: admitted; then the rule


def explain(file: Path | None, service: str, address: str, at: str | None) -> int:
    """Print `admitted` or `refused`, with the rule; exit 0 or 1."""
    configuration = read(file)
    settings = configuration.settings
    daemon = _Daemon.of(daemon_files(file), settings.daemon.ban_file)
    if daemon.texts not in (None, settings.digest):
        text = "the daemon has not loaded the current files, by which this decides"
        print(f"superd: {text}; run `superd reload`", file=sys.stderr)
    if service not in settings.services:
        raise no_such_service(service, settings.services)
    client, moment = _client(address), _moment(at)
    entry = settings.services[service]
    rules = _ServiceRules(configuration, service, entry, daemon.bans)
    if not daemon.overrides.get(service, entry.enabled):
        print(f"not served: disabled, {rules.disabled_by(daemon.overrides)}")
        return int(ExitCode.FAILED)
    for one in daemon.pending:
        if one["service"] == service:
            text = f"the service does not listen on {one['addresses']} yet: {one['why']}"
            print(f"superd: {text}", file=sys.stderr)
    for notice in unused_rules_notice({service: entry}):
        print(f"superd: {notice}", file=sys.stderr)
    refusal, why = rules.decision(client, moment)
    if refusal is None:
        print(f"admitted: {why}" if why else "admitted: no rule refuses it")
        return int(ExitCode.OK)
    print(f"refused ({refusal.value}): {why}")
    return int(ExitCode.FAILED)


def _moment(at: str | None) -> float:
    if at is None:
        return time.time()
    try:
        return datetime.fromisoformat(at).timestamp()
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f'--at: expected a time such as "2026-11-25 18:30", found {shown(at)}'
        ) from None


def _client(address: str) -> Who:
    try:
        if address.startswith("user:"):
            pattern = parse_pattern(address)
            assert isinstance(pattern, User)
            return UnixPeer(pattern.uid)
        parsed = ipaddress.ip_address(host_of(address))
        return str(getattr(parsed, "ipv4_mapped", None) or parsed)
    except ValueError as error:
        text = f"; {error}" if address.startswith("user:") else f", found {shown(address)}"
        raise UsageError(f"expected an address, or user:NAME for a unix socket{text}") from None


@dataclass(frozen=True)
class _Daemon:
    """The daemon's state that no file has. `texts` is the digest of the files that it loaded,
    None where no daemon answers.
    """

    texts: str | None
    overrides: Mapping[str, bool]
    bans: Sequence[Ban]
    pending: Sequence[Mapping[str, str]] = ()  # addresses that could not be bound yet

    @classmethod
    def of(cls, files: DaemonFiles, ban_file: Path | None) -> _Daemon:
        """Ask the daemon; where none answers, take the bans from the ban file."""
        try:
            with connected(files) as connection:
                outline = connection.outline()
                bans = [ban_of(ban) for ban in connection.request("bans")["bans"]]
        except ServesAnotherFile:
            raise
        except SuperdError:
            in_file = saved(ban_file) if ban_file else []
            return cls(None, {}, [ban for ban in in_file if ban.until > time.time()])
        pending = outline.get("pending", ())
        return cls(outline.get("texts"), outline["overrides"], bans, pending)


class _ServiceRules:
    """The rules of one service, and the places of its keys."""

    def __init__(
        self, configuration: Configuration, name: str, entry: Service, bans: Sequence[Ban]
    ) -> None:
        self.configuration = configuration
        self.name = name
        self.entry = entry
        self.bans = bans

    def disabled_by(self, overrides: Mapping[str, bool]) -> str:
        """Return what disables the service: the operator, or a line of the configuration."""
        return "by the operator" if self.name in overrides else self._where("enabled", None)

    def decision(self, client: Who, moment: float) -> Decision:
        """Decide in the order of the gate (superd/admission/gate.py)."""
        if isinstance(client, str) and (ban := self._ban_on(client)):
            return Refusal.BANNED, ban
        by_rule = ""
        access = access_list(self.entry, self._where)
        if access is not None:
            rule, name = self._rule(access, client)
            by_rule = self._described(rule, client, name)
            if not access.admits(rule):
                return Refusal.ACCESS, by_rule
        by_time = ""
        if self.entry.access_times is not None:
            times = AccessTimes(self.entry.access_times, self.entry.time_zone)
            number = times.window_at(moment)
            if number is None:
                windows = ", ".join(f'"{window}"' for window in times.windows)
                text = (
                    f"the service is open {windows or 'never'}, {self._where('access-times', None)}"
                )
                return Refusal.TIMES, text
            by_time = f'access-times "{times.windows[number]}", '
            by_time += self._where("access-times", number)
        return None, "; ".join(filter(None, (by_rule, by_time)))

    def _rule(self, access: AccessList, client: Who) -> tuple[Rule | None, str]:
        """Return the rule that decides, and the client's name if a rule needs it."""
        if isinstance(client, UnixPeer):
            return access.rule_for_user(client), ""
        if access.verdict(client) is not Verdict.DEPENDS_ON_NAME:
            return access.rule_for_host(client), ""
        name = confirmed_name(client)
        return access.rule_for_named(client, name), name

    def _described(self, rule: Rule | None, client: Who, name: str) -> str:
        called = f" ({name})" if name else ""
        if rule is None:
            if self.entry.allow is None and self.entry.allow_file is None:
                return ""
            key = "allow" if self.entry.allow is not None else "allow-file"
            peer = client if isinstance(client, str) else f"user:{client.uid}"
            return f"{key} has no entry for {peer}{called}, {self._where(key, None)}"
        if isinstance(rule.pattern, HostName) and not name:
            called = f" refuses {client}, which has no confirmed name"
        return f'{"allow" if rule.allows else "deny"} "{rule.pattern}"{called}, {rule.where}'

    def _ban_on(self, host: str) -> str:
        """Return the ban of a host, in the daemon or in the ban file."""
        address = ipaddress.ip_address(host)
        for ban in self.bans:
            if address in ban.network:
                end = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ban.until))
                why = f" ({ban.reason})" if ban.reason else ""
                return f"{shown_network(ban.network)} until {end}, by {ban.by}{why}"
        return ""

    def _where(self, key: str, number: int | None) -> str:
        """Return FILE:LINE of a key, or of an element of it."""
        path = (key,) if number is None else (key, number)
        document, place = self.configuration.locate(self.name, path)
        problem = document.problem(place, "")
        return f"{problem.file}:{problem.line}"
