"""The first steps of the plugins of a worker: each is loaded, built and prepared.

Runs in the worker before it is confined, as the master's user. Raises SuperdError, which names the
service and the plugin.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
from collections.abc import Collection, Container, Iterable, Mapping
from itertools import islice
from pathlib import Path

from superd.config.model import Service
from superd.errors import SuperdError
from superd.plugin import registry
from superd.plugin.service import Service as PluginService
from superd.process import preload
from superd.process.confinement import OPEN_DESCRIPTORS, open_descriptors
from superd.process.procfs import count_descriptors
from superd.worker.channel import AppendedFile
from superd.worker.runtime.appended_files import appended_files
from superd.worker.runtime.output import scope_of


def prepare_all(
    services: Mapping[str, Service], plugins: Mapping[str, registry.Plugin], directory: Path
) -> tuple[dict[str, PluginService], list[AppendedFile]]:
    """Load, build and prepare the plugins of all services; return them, and the files that they
    have opened for appending.
    """
    modules = len(sys.modules)
    prepared: dict[str, PluginService] = {}
    files: list[AppendedFile] = []
    known, count = set(open_descriptors()), count_descriptors(os.getpid())
    for name, entry in services.items():
        try:
            prepared[name] = scope_of(name).run(_build, plugins[entry.plugin], entry, directory)
        except registry.PluginError as error:
            raise SuperdError(f"service.{name}: {error}") from error
        if (now := count_descriptors(os.getpid())) != count:  # listing thousands takes a while
            after, count = set(open_descriptors()), now
            _check_directories(name, entry.plugin, after - known)
            files += appended_files(name, after - known)
            known = after
    # the newest only: reading all of them would copy memory that is shared with the master
    preload.keep_sources(tuple(islice(reversed(sys.modules), len(sys.modules) - modules)))
    return prepared, files


def _build(plugin: registry.Plugin, entry: Service, directory: Path) -> PluginService:
    """Take the first two steps of a service's life."""
    kind = registry.load(plugin)
    with plugin.running("options_model"):
        options = kind.options_model.model_validate(entry.options, context={"directory": directory})
    preload.load(kind.preload)
    with plugin.running("__init__"):
        service = kind(options)
    with plugin.running("check"):
        service.check(entry)
    with plugin.running("prepare"):
        service.prepare()
    return service


def _check_directories(service: str, plugin: str, descriptors: Iterable[int]) -> None:
    """Raise SuperdError for a directory that `prepare` left open: it is a way out of a jail."""
    for number in descriptors:
        with contextlib.suppress(OSError):
            if stat.S_ISDIR(os.fstat(number).st_mode):
                directory = os.readlink(f"{OPEN_DESCRIPTORS}/{number}")
                text = f"plugin {plugin} left the directory {directory} open in prepare"
                raise SuperdError(f"service.{service}: {text}; have prepare close it")


def descriptors_of_plugins(services: Collection[str], ours: Container[int]) -> Collection[int]:
    """Return the descriptors that handler processes inherit from plugins. Raises SuperdError if a
    plugin has started a thread, as no forked process would have it.
    """
    if threading.active_count() > 1:
        text = "a plugin started a thread in prepare, but forked processes do not inherit threads"
        raise SuperdError(f'services {", ".join(services)}: {text}; use model = "thread"')
    return [number for number in open_descriptors() if number not in ours]
