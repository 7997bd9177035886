"""The preflight: checks each plugin and its services in a child process, before anything is bound.

Runs in the command line and the master, never in a worker. In the child a plugin is imported, its
options are checked, its services are built and, before a start, prepared. A plugin that raises,
exits, hangs or crashes there breaks only its own services. Raises nothing.
"""

from __future__ import annotations

import asyncio  # noqa: F401  most plugins import it: once here, for all of the children
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from pydantic import ValidationError

from superd.config.loading import ENTRY_KEYS, Configuration
from superd.config.model import Service
from superd.config.problems import Locate, dotted, problems_of
from superd.config.values import did_you_mean, nearest
from superd.errors import Problem, shown
from superd.master.plan.pools import with_identity
from superd.plugin.methods import kinds_of, models_of
from superd.plugin.registry import Plugin, PluginError, load
from superd.plugin.service import Options, WrongOption
from superd.plugin.service import Service as PluginService
from superd.process import preload
from superd.process.confinement import become
from superd.process.environment import clean_environment
from superd.process.isolated import run_isolated


@dataclass
class Verdict:
    """The result: mistakes in the configuration, and services whose plugin does not work, with the
    reason.
    """

    problems: list[Problem] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)  # that are to blame, if any, by service
    looking_up: list[str] = field(default_factory=list)  # services that need a resolver

    def all_problems(self, configuration: Configuration) -> list[Problem]:
        """Return all problems of a configuration, with those of its plugins, which know better what
        is meant by a key or a value than the configuration does.
        """
        places = set(map(_place, self.problems))
        of_configuration = [one for one in configuration.problems if _place(one) not in places]
        broken = []
        for name, why in self.broken.items():
            key = self.options.get(name)
            path = ("options", key) if key else ("plugin",)
            broken.append(configuration.problem(name, path, why))
        return [*of_configuration, *self.problems, *broken]


def _place(problem: Problem) -> object:
    """Return the place of a problem; arguments of `superd try` have no lines."""
    return (problem.file, problem.line, problem.column, "" if problem.line else problem.path)


def preflight(
    configuration: Configuration,
    plugins: Mapping[str, Plugin],
    *,
    prepare: bool,
    is_check: bool = False,
) -> Verdict:
    """Check all services, also disabled ones; with `prepare`, prepare those that are enabled. With
    `is_check` create no file.
    """
    verdict = Verdict()
    by_plugin: dict[str, dict[str, Service]] = {}
    for name, entry in configuration.partial.services.items():
        if mistake := _plugin_mistake(entry.plugin, plugins):
            verdict.problems.append(configuration.problem(name, ("plugin",), mistake))
        else:
            by_plugin.setdefault(entry.plugin, {})[name] = entry
    outcomes = run_isolated(
        {
            plugin: _Preflight(configuration, plugins[plugin], services, prepare, is_check)
            for plugin, services in by_plugin.items()
        }
    )
    for plugin, outcome in outcomes.items():
        if outcome.failure:
            verdict.broken |= dict.fromkeys(by_plugin[plugin], blamed(plugin, outcome.failure))
        else:
            verdict.problems += [Problem(**problem) for problem in outcome.result["problems"]]
            verdict.broken |= outcome.result["broken"]
            verdict.options |= outcome.result["options"]
            verdict.looking_up += outcome.result["looking_up"]
    return verdict


def blamed(plugin: str, failure: str) -> str:
    """Return why a plugin's child failed, with the plugin's name unless the text has it already."""
    return failure if failure.startswith("plugin ") else f"plugin {plugin}: {failure}"


def _plugin_mistake(plugin: str, plugins: Mapping[str, Plugin]) -> str:
    """Return why a service cannot name this plugin, or ""."""
    if plugin in plugins:
        return plugins[plugin].conflict
    hint = did_you_mean(plugin, list(plugins)) or "; `superd plugins` lists all"
    return f"there is no plugin {shown(plugin)}{hint}"


def _model_mistake(entry: Service, kind: type[PluginService]) -> str:
    """Return why the plugin cannot serve with the entry's `model`, or ""."""
    known = models_of(kind)
    if entry.wait and entry.model is not None:
        return (
            "has no effect with wait = true, where the plugin has the listening socket; remove it"
        )
    if entry.model is None or entry.model in known:
        return ""
    needed = "no stream(conn) that blocks" if known == ("loop",) else "only one that blocks"
    words = " or ".join(f'"{model}"' for model in known)
    return f"plugin {entry.plugin} has {needed}; expected {words}, found {shown(entry.model)}"


def _misplaced(unread: Iterable[str], model: type[Options]) -> dict[str, str]:
    """Return the unknown keys of an entry that are options of its plugin, each with the option. A
    misspelled one is recognised if no key of an entry is more similar.
    """
    options = [str(field.alias) for field in model.model_fields.values()]
    unknown = sorted(set(unread) - ENTRY_KEYS)
    found = {key: nearest(key, [*ENTRY_KEYS, *options]) for key in unknown}
    return {key: option for key, option in found.items() if option in options}


@dataclass(frozen=True)
class _Preflight:
    """The child's job, for all services of one plugin."""

    configuration: Configuration
    plugin: Plugin
    services: Mapping[str, Service]
    prepare: bool
    is_check: bool

    def __call__(self) -> dict[str, Any]:
        clean_environment()
        kind = load(self.plugin)
        preload.load(kind.preload)
        problems: list[Problem] = []
        broken: dict[str, str] = {}
        options: dict[str, str] = {}
        looking_up: list[str] = []
        ready: dict[str, PluginService] = {}
        built: dict[str, PluginService] = {}
        for name, entry in self.services.items():
            problems += self._mismatches(name, entry, kinds_of(kind))
            if entry.wait and not hasattr(kind, "listener"):
                message = f"plugin {entry.plugin} cannot have the listening socket; remove wait"
                problems.append(self.configuration.problem(name, ("wait",), message))
            if mistake := _model_mistake(entry, kind):
                problems.append(self.configuration.problem(name, ("model",), mistake))
            try:
                service = self._built(name, entry, kind, problems)
                if service is not None and self.prepare and entry.enabled:
                    self._prepare(service)
                    ready[name] = service
                if service is not None and service.looks_up:
                    looking_up.append(name)
                if service is not None and entry.enabled:
                    built[name] = service
            except PluginError as error:
                broken[name] = str(error)
            except WrongOption as error:
                broken[name], options[name] = str(error), error.key
        for name, (key, text) in self._judged_as_users(ready):
            broken[name] = text
            if key:
                options[name] = key
        with self.plugin.running("check_all"):
            problems += [self._wrong(name, wrong) for name, wrong in kind.check_all(built)]
        rows = [asdict(problem) for problem in problems]
        found = {"problems": rows, "broken": broken, "options": options}
        return {**found, "looking_up": looking_up}

    def _prepare(self, service: PluginService) -> None:
        is_dry = type(service).preflight is not PluginService.preflight
        with self.plugin.running("prepare", WrongOption):
            if self.is_check or is_dry:
                service.preflight()
            if not self.is_check:
                service.prepare()

    def _judged_as_users(
        self, services: Mapping[str, PluginService]
    ) -> Iterator[tuple[str, tuple[str, str]]]:
        """Yield each service that its workers' user could not serve, with the option to blame, ""
        for none, and the reason.
        """
        jobs = {
            name: partial(self._judge_as_user, service, self.services[name])
            for name, service in services.items()
            if type(service).preflight_as_user is not PluginService.preflight_as_user
        }
        for name, outcome in run_isolated(jobs).items():
            if outcome.failure:
                yield name, ("", blamed(self.plugin.name, outcome.failure))
            elif outcome.result:
                yield name, outcome.result

    def _judge_as_user(self, service: PluginService, entry: Service) -> tuple[str, str] | None:
        if os.geteuid() == 0:
            become(with_identity(entry.confinement))
        try:
            with self.plugin.running("preflight_as_user", WrongOption):
                service.preflight_as_user()
        except WrongOption as error:
            return error.key, str(error)
        return None

    def _built(
        self, name: str, entry: Service, kind: type[PluginService], problems: list[Problem]
    ) -> PluginService | None:
        """Build the service; if its options are wrong, add to the problems and return None.

        Where the entry lacks keys, because they have problems, it is not checked further: one cause
        is one problem.
        """
        model, context = kind.options_model, {"directory": self.configuration.partial.file.parent}
        unread = self.configuration.unread.get(name, frozenset())
        misplaced = _misplaced(unread, model)
        for key, option in misplaced.items():
            message = f"unknown key; it belongs in options = {{ {dotted((option,))} = ... }}"
            problems.append(self.configuration.problem(name, (key,), message, at_key=True))
        if "options" in unread:
            return None
        try:
            with self.plugin.running("options_model", ValidationError):
                options = model.model_validate(entry.options, context=context)
            with self.plugin.running("__init__", WrongOption):
                service = kind(options)
            if unread:
                return None
            with self.plugin.running("check", WrongOption):
                service.check(entry)
        except ValidationError as error:
            locate = self._locator(name)
            problems += problems_of(error, model, entry.options, locate, misplaced.values())
            return None
        except WrongOption as error:
            problems.append(self._wrong(name, error))
            return None
        return service

    def _wrong(self, name: str, error: WrongOption) -> Problem:
        is_of_entry = error.key in ENTRY_KEYS and error.key not in self.services[name].options
        path = (error.key,) if is_of_entry else ("options", error.key)
        return self.configuration.problem(name, path, str(error))

    def _locator(self, name: str) -> Locate:
        return lambda path: self.configuration.locate(name, ("options", *path))

    def _mismatches(self, name: str, entry: Service, kinds: tuple[str, ...]) -> list[Problem]:
        """Return a problem for each transport that the plugin has no method for."""
        found = []
        for transport in dict.fromkeys(address.transport for address in entry.listen):
            if ("datagram" if transport.is_datagram else "stream") not in kinds:
                address = next(one for one in entry.listen if one.transport is transport)
                what = f"plugin {entry.plugin} does not serve {transport.value}"
                message = f"{what}, only {' and '.join(kinds)} addresses"
                found.append(self.configuration.address_problem(name, address, message))
        return found
