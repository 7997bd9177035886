"""Lists the installed plugins, and loads one.

`installed` runs in every process, the master included; it reads metadata and never imports a
plugin. `load` runs in workers and in the preflight process. Raises PluginError, also for any
exception of a plugin.
"""

from __future__ import annotations

import ast
import importlib.util
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from itertools import islice
from pathlib import Path
from typing import Any

import pluggy

from superd.config.values import did_you_mean
from superd.errors import SuperdError, printable, reason, shown
from superd.plugin import hookspecs
from superd.plugin.methods import DATAGRAM_METHODS, STREAM_METHODS, mistake_in
from superd.plugin.service import Service

MAX_SOURCE_FILES = 200  # of a package that are read to find out what it serves


class PluginError(SuperdError):
    """A plugin cannot be loaded or used; the text says why."""


@dataclass(frozen=True)
class Plugin:
    """One installed plugin: an entry point of the group `superd`.

    `rivals` are plugins of other distributions with the same name; none of them can be used then.
    """

    name: str
    entry_point: EntryPoint
    rivals: tuple[Plugin, ...] = ()

    @property
    def distribution(self) -> str:
        return self._metadata("Name") or "(unknown)"

    @property
    def version(self) -> str:
        return self._metadata("Version") or "?"

    def _metadata(self, key: str) -> str | None:
        """Return a field of the distribution's metadata; None if it is damaged."""
        if self.entry_point.dist is None:
            return None
        metadata = self.entry_point.dist.metadata
        return metadata[key] if key in metadata else None  # noqa: SIM401  it has no get in 3.11

    @property
    def conflict(self) -> str:
        """An error text if several distributions have a plugin of this name; otherwise ""."""
        if not self.rivals:
            return ""
        both = " and ".join(f"{p.distribution} {p.version}" for p in (self, *self.rivals))
        return f"plugin {self.name} is offered by several distributions: {both}"

    @contextmanager
    def running(self, step: str, *passed: type[Exception]) -> Iterator[None]:
        """Turn every exception in a step of the plugin's life into PluginError, except `passed`."""
        try:
            yield
        except passed:
            raise
        except BaseException as error:  # a plugin may raise SystemExit and worse
            text = f"plugin {self.name} failed in {step}: {self.describe(error)}"
            raise PluginError(text) from error

    def describe(self, error: BaseException) -> str:
        """Return an error on one line, with the innermost line of the plugin's code, if any."""
        text = printable(reason(error))
        for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
            if _package(frame.f_globals.get("__name__", "")) == _package(self.entry_point.module):
                return f"{text} ({frame.f_code.co_filename}:{line})"
        return text

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """What it serves, found in its source without importing it; empty if unclear."""
        methods = set[str]()
        for file in _source_files(self.entry_point.module):
            methods |= _method_names(file)
        found = {"stream": STREAM_METHODS, "datagram": DATAGRAM_METHODS}
        return tuple(kind for kind, names in found.items() if methods & set(names))


def installed() -> dict[str, Plugin]:
    """Return the installed plugins by name; PluginError if a distribution's metadata is damaged."""
    try:
        found = entry_points(group=hookspecs.PROJECT)
    except (TypeError, ValueError) as error:
        text = f"the metadata of an installed distribution cannot be read: {reason(error)}"
        raise PluginError(text) from None
    plugins: dict[str, Plugin] = {}
    for entry_point in sorted(found, key=lambda entry: entry.name):
        plugin = Plugin(entry_point.name, entry_point)
        if first := plugins.get(plugin.name):
            plugin = replace(first, rivals=(*first.rivals, plugin))
        plugins[plugin.name] = plugin
    return plugins


def load(plugin: Plugin) -> type[Service]:
    """Import a plugin and return its service class of the same name."""
    if plugin.conflict:
        raise PluginError(plugin.conflict)
    try:
        module = plugin.entry_point.load()
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        manager.register(module, plugin.name)
        unknown = _unknown_hooks(manager, module)
        answers = _ask(manager)
    except BaseException as error:  # a plugin may raise SystemExit and worse
        raise PluginError(
            f"plugin {plugin.name} cannot be loaded: {plugin.describe(error)}"
        ) from error
    if unknown:
        raise PluginError(f"plugin {plugin.name} cannot be used: {unknown}")
    found: list[Any] = []
    for answer in answers:
        if not isinstance(answer, (list, tuple)):
            raise PluginError(
                f"plugin {plugin.name} cannot be used: superd_services should return a list of"
                f" classes, such as [A], found {shown(repr(answer))}"
            )
        found += answer
    for service in found:
        if mistake := mistake_in(service):
            raise PluginError(f"plugin {plugin.name} cannot be used: {mistake}")
    named = [service for service in found if service.name == plugin.name]
    if len(named) != 1:
        names = ", ".join(service.name for service in found) or "none"
        raise PluginError(
            f"plugin {plugin.name} cannot be used: superd_services should return one class"
            f' with the name "{plugin.name}", found {names}'
        )
    kind: type[Service] = named[0]
    if len(found) > 1 and (unreachable := _without_entry_point(plugin, found)):
        raise PluginError(f"plugin {plugin.name} cannot be used: {unreachable}")
    return kind


def _without_entry_point(plugin: Plugin, found: Iterable[type[Service]]) -> str:
    """Return an error text for a class that no service can name; otherwise ""."""
    offered = installed()
    value = plugin.entry_point.value
    for service in found:
        if service.name not in offered:
            line = f'{service.name} = "{value}"'
            where = f"[project.entry-points.{hookspecs.PROJECT}]"
            return f"class {service.__qualname__} has no entry point; add {line} below {where}"
    return ""


def _unknown_hooks(manager: pluggy.PluginManager, module: object) -> str:
    """Return an error text for a hook that superd does not have; otherwise ""."""
    callers = manager.get_hookcallers(module) or []
    known = [name for name in vars(hookspecs) if name.startswith(f"{hookspecs.PROJECT}_")]
    for caller in callers:
        is_needed = not all(hook.optionalhook for hook in caller.get_hookimpls())
        if is_needed and not caller.has_spec():
            hint = did_you_mean(caller.name, known) or f"; there is {', '.join(known)}"
            return f"there is no hook {caller.name}{hint}"
    return ""


def _ask(manager: pluggy.PluginManager) -> list[object]:
    answers: list[object] = manager.hook.superd_services()
    return answers


def _package(module: str) -> str:
    return module.partition(".")[0]


def _source_files(module: str) -> list[Path]:
    try:
        spec = importlib.util.find_spec(_package(module))
    except (ImportError, ValueError):
        return []
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return []
    origin = Path(spec.origin)
    is_package = spec.submodule_search_locations is not None
    return list(islice(origin.parent.rglob("*.py"), MAX_SOURCE_FILES)) if is_package else [origin]


def _method_names(file: Path) -> set[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return set()
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {n.name for c in classes for n in c.body if isinstance(n, functions)}
