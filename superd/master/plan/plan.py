"""Plans what each pool of workers serves, from a configuration that has passed the preflight.

Runs in the command line, before it becomes the master, and in the master for a reload. Binds
nothing. Raises ConfigurationError and NotPermitted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from superd.admission.rules import has_rules, needs_names
from superd.config.loading import Configuration
from superd.config.model import Service, Settings
from superd.errors import ConfigurationError
from superd.master.plan.pools import Pool, pools_of
from superd.master.plan.preflight import preflight
from superd.plugin.registry import Plugin, installed
from superd.process import preload

SOMAXCONN = Path("/proc/sys/net/core/somaxconn")


@dataclass
class Plan:
    """A configuration that has passed all checks.

    `broken` has services whose plugin does not work, with the reason; `looking_up` services whose
    plugin needs a resolver; `pending` why addresses could not be bound at the start.
    """

    settings: Settings
    pools: list[Pool]
    plugins: dict[str, Plugin]
    broken: dict[str, str]
    needs_resolver: bool
    looking_up: list[str]
    notices: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)

    @property
    def workers(self) -> int:
        return sum(pool.workers for pool in self.pools)

    @property
    def services(self) -> dict[str, Service]:
        return {name: entry for pool in self.pools for name, entry in pool.services.items()}

    @property
    def listening(self) -> dict[str, Service]:
        """The services without what may be long and does not concern their listeners."""
        return {name: _short(entry) for name, entry in self.services.items()}

    def shorten(self) -> None:
        """Drop rules, options and texts, which may take many megabytes: the workers have copies.

        The master keeps the plan for as long as a connection of its generation continues, and the
        first plan for as long as it runs.
        """
        self.pools = [
            replace(pool, services={name: _short(one) for name, one in pool.services.items()})
            for pool in self.pools
        ]
        services = {name: _short(entry) for name, entry in self.settings.services.items()}
        daemon = self.settings.daemon.model_copy(update={"never_ban": ()})
        kept = {"services": services, "texts": {}, "daemon": daemon}
        self.settings = self.settings.model_copy(update=kept)


def _short(entry: Service) -> Service:
    lists: dict[str, object] = {
        "allow": None,
        "allow_file": None,
        "deny": (),
        "deny_file": (),
        "options": {},
    }
    return entry.model_copy(update=lists)


def plan(configuration: Configuration) -> Plan:
    """Run the preflight of all plugins, and sort the services that work into pools."""
    plugins = installed()
    preload.warm_up()
    verdict = preflight(configuration, plugins, prepare=not configuration.problems)
    if configuration.problems or verdict.problems:
        raise ConfigurationError(verdict.all_problems(configuration))
    settings = configuration.settings
    broken = {name: why for name, why in verdict.broken.items() if name in settings.enabled}
    if not settings.enabled.keys() - broken.keys():
        raise ConfigurationError(verdict.all_problems(configuration))
    return plan_of(settings, plugins, broken, verdict.looking_up)


def plan_of(
    settings: Settings,
    plugins: dict[str, Plugin],
    broken: dict[str, str],
    looking_up: Collection[str] = (),
) -> Plan:
    """Sort the services that are not `broken` into pools."""
    services = {name: entry for name, entry in settings.enabled.items() if name not in broken}
    pools, notices = pools_of(settings, services)
    notices += _backlog_notice(services)
    notices += unused_rules_notice(services)
    by_name = any(needs_names(entry) for entry in services.values())
    needs_resolver = by_name or not services.keys().isdisjoint(looking_up)
    return Plan(settings, pools, plugins, broken, needs_resolver, list(looking_up), notices)


def unused_rules_notice(services: Mapping[str, Service]) -> list[str]:
    """Return a notice if rules are for clients that a program accepts itself."""
    names = [
        name
        for name, entry in services.items()
        if entry.wait
        and any(not address.transport.is_datagram for address in entry.listen)
        and (has_rules(entry) or entry.max_per_source or entry.rate_per_source)
    ]
    what = "with wait = true the program accepts its clients itself, whatever allow, deny,"
    what += " access-times and the limits of a source say"
    return [f"{what}: {', '.join(names)}"] if names else []


def _backlog_notice(services: dict[str, Service]) -> list[str]:
    """Return a notice if the kernel limits a backlog further (listen(2))."""
    try:
        most = int(SOMAXCONN.read_text())
    except (OSError, ValueError):
        return []
    wanted = max((entry.backlog for entry in services.values()), default=0)
    return [f"backlog is {wanted}, but {SOMAXCONN} is {most}"] if wanted > most else []
