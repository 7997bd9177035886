"""`superd explain`: would this client be let in, and by which line of the configuration?

Runs in the command line, without a client having to try, and asks the very rules that workers ask.
Raises ConfigurationError, UsageError.
"""

from __future__ import annotations

import ipaddress
import time
from datetime import datetime
from pathlib import Path

from superd.admission.access import AccessList, Rule, UnixPeer, Verdict
from superd.admission.refusals import Refusal
from superd.admission.rules import Who, access_list
from superd.admission.times import AccessTimes
from superd.cli.files import no_service, read
from superd.config.loading import Configuration
from superd.config.model import Service
from superd.errors import ExitCode, SuperdError, UsageError, shown
from superd.master.bans import Ban, ban_of, saved
from superd.master.control import ask
from superd.net.names import confirmed_name
from superd.net.patterns import User, parse_pattern, shown_network

Judgement = tuple[Refusal | None, str]  # None: admitted; and by what


def explain(file: Path | None, service: str, address: str, at: str | None) -> int:
    """Print `admitted` or `refused`, and why; exit 0 or 1."""
    configuration = read(file)
    services = configuration.settings.services
    if service not in services:
        raise no_service(service, services)
    moment = _moment(at)
    asked = _Asked(configuration, service, services[service])
    refusal, why = asked.judgement(_who(address), moment)
    if refusal is None:
        print(f"admitted: {why}" if why else "admitted: no rule speaks against it")
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


def _who(address: str) -> Who:
    try:
        if address.startswith("user:"):
            pattern = parse_pattern(address)
            assert isinstance(pattern, User)
            return UnixPeer(pattern.uid)
        parsed = ipaddress.ip_address(address)
        return str(getattr(parsed, "ipv4_mapped", None) or parsed)
    except ValueError as error:
        text = str(error) if address.startswith("user:") else f"{shown(address)} is none"
        raise UsageError(f"expected an address, or user:NAME for a unix socket; {text}") from None


class _Asked:
    """One service, and where its keys stand."""

    def __init__(self, configuration: Configuration, name: str, entry: Service) -> None:
        self.configuration = configuration
        self.name = name
        self.entry = entry

    def judgement(self, who: Who, moment: float) -> Judgement:
        """Judge in the order of the gate."""
        if isinstance(who, str) and (ban := self._ban_on(who)):
            return Refusal.BANNED, ban
        by_rule = ""
        access = access_list(self.entry, self._where)
        if access is not None:
            rule, name = self._rule(access, who)
            by_rule = self._told(rule, who, name)
            if not self._admits(access, rule, who, name):
                return Refusal.ACCESS, by_rule
        by_time = ""
        if self.entry.access_times is not None:
            times = AccessTimes(self.entry.access_times, self.entry.time_zone)
            number = times.window_at(moment)
            if number is None:
                windows = ", ".join(f'"{window}"' for window in times.windows)
                told = f"it is open {windows or 'never'}, {self._where('access-times', None)}"
                return Refusal.TIMES, told
            by_time = f'access-times "{times.windows[number]}", '
            by_time += self._where("access-times", number)
        return None, "; ".join(filter(None, (by_rule, by_time)))

    def _rule(self, access: AccessList, who: Who) -> tuple[Rule | None, str]:
        """Return the rule that decides, and the client's name if that had to be asked for."""
        if isinstance(who, UnixPeer):
            return access.rule_for_user(who), ""
        name = ""
        if access.verdict(who) is Verdict.DEPENDS_ON_NAME:
            name = confirmed_name(who)
        return access.rule_for_host(who, name), name

    def _admits(self, access: AccessList, rule: Rule | None, who: Who, name: str) -> bool:
        if isinstance(who, str) and access.verdict(who) is Verdict.DEPENDS_ON_NAME:
            return access.admits_named(who, name)
        return access.admits(rule)

    def _told(self, rule: Rule | None, who: Who, name: str) -> str:
        called = f" ({name})" if name else ""
        if rule is None:
            if self.entry.allow is None and self.entry.allow_file is None:
                return ""
            key = "allow" if self.entry.allow is not None else "allow-file"
            whom = who if isinstance(who, str) else f"user:{who.uid}"
            return f"{key} has nothing for {whom}{called}, {self._where(key, None)}"
        return f'{"allow" if rule.allows else "deny"} "{rule.pattern}"{called}, {rule.where}'

    def _ban_on(self, host: str) -> str:
        """Return the ban that a host is under, as the daemon or its file has it."""
        address = ipaddress.ip_address(host)
        for ban in self._bans():
            if address in ban.network:
                end = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ban.until))
                why = f" ({ban.reason})" if ban.reason else ""
                return f"{shown_network(ban.network)} until {end}, by {ban.by}{why}"
        return ""

    def _bans(self) -> list[Ban]:
        daemon = self.configuration.partial.daemon
        try:
            assert daemon.control_socket is not None
            return [ban_of(ban) for ban in ask(daemon.control_socket, "bans")["bans"]]
        except (SuperdError, KeyError):
            in_file = saved(daemon.ban_file) if daemon.ban_file else []
            return [ban for ban in in_file if ban.until > time.time()]

    def _where(self, key: str, number: int | None) -> str:
        """Return FILE:LINE of a key, or of an element of it."""
        path = (key,) if number is None else (key, number)
        document, place = self.configuration.locate(self.name, path)
        problem = document.problem(place, "")
        return f"{problem.file}:{problem.line}"
