"""Checks what only plugins can tell, in processes that are thrown away.

Runs in the command line and the master, before anything is bound. Each plugin is rehearsed in a
child of its own: it is imported, its options are checked, its services are built and, before a
start, prepared. A plugin that raises, exits, hangs or crashes there breaks its services only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import ValidationError

from superd.config.loading import Configuration
from superd.config.model import Service
from superd.config.positions import Path
from superd.config.problems import Document, problems_of
from superd.config.values import did_you_mean
from superd.errors import Problem, SuperdError, reason
from superd.master.isolated import run_isolated
from superd.plugin.registry import Plugin, load
from superd.plugin.service import kinds_of
from superd.worker import preload


@dataclass
class Verdict:
    """Mistakes in the configuration, and services whose plugin does not work, with the reason."""

    problems: list[Problem] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)


def rehearse(
    configuration: Configuration, plugins: Mapping[str, Plugin], *, prepare: bool
) -> Verdict:
    """Try all services, those that are not enabled too; `prepare` those that are."""
    verdict = Verdict()
    by_plugin: dict[str, dict[str, Service]] = {}
    for name, entry in configuration.settings.services.items():
        if entry.plugin in plugins:
            by_plugin.setdefault(entry.plugin, {})[name] = entry
        else:
            hint = did_you_mean(entry.plugin, list(plugins)) or "; pip installs more of them"
            message = f'there is no plugin "{entry.plugin}"{hint}'
            verdict.problems.append(configuration.problem(name, ("plugin",), message))
    outcomes = run_isolated(
        {
            plugin: _Rehearsal(configuration, plugins[plugin], services, prepare)
            for plugin, services in by_plugin.items()
        }
    )
    for plugin, outcome in outcomes.items():
        if outcome.failure:
            text = outcome.failure
            failure = text if text.startswith("plugin ") else f"plugin {plugin}: {text}"
            verdict.broken |= dict.fromkeys(by_plugin[plugin], failure)
        else:
            verdict.problems += [Problem(**problem) for problem in outcome.result["problems"]]
            verdict.broken |= outcome.result["broken"]
    return verdict


@dataclass(frozen=True)
class _Rehearsal:
    """What runs in the child, for all services of one plugin."""

    configuration: Configuration
    plugin: Plugin
    services: Mapping[str, Service]
    prepare: bool

    def __call__(self) -> dict[str, Any]:
        try:
            kind = load(self.plugin)
        except SuperdError as error:
            return {"problems": [], "broken": dict.fromkeys(self.services, str(error))}
        preload.warm_up(kind.preload)
        problems: list[Problem] = []
        broken: dict[str, str] = {}
        for name, entry in self.services.items():
            problems += self._mismatches(name, entry, kinds_of(kind))
            try:
                directory = self.configuration.settings.file.parent
                context = {"directory": directory}
                options = kind.options_model.model_validate(entry.options, context=context)
                service = kind(options)
                if self.prepare and entry.enabled:
                    service.prepare()
            except ValidationError as error:
                problems += problems_of(error, kind.options_model, self._locator(name))
            except BaseException as error:  # noqa: BLE001  a plugin may raise anything
                broken[name] = f"plugin {self.plugin.name} failed: {reason(error)}"
        return {"problems": [asdict(problem) for problem in problems], "broken": broken}

    def _locator(self, name: str) -> Any:
        def locate(path: Path) -> tuple[Document, Path]:
            return self.configuration.locate(name, ("options", *path))

        return locate

    def _mismatches(self, name: str, entry: Service, kinds: tuple[str, ...]) -> list[Problem]:
        found = []
        for number, address in enumerate(entry.listen):
            kind = "datagram" if address.transport.is_datagram else "stream"
            if kind not in kinds:
                what = f"plugin {entry.plugin} does not serve {address.transport.value}"
                message = f"{what}, only {' and '.join(kinds)} addresses"
                found.append(self.configuration.problem(name, ("listen", number), message))
        return found
