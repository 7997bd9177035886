"""From a configuration to a running master, in the order that leaves nothing behind on failure.

Runs in the process that becomes the master. Raises SuperdError of every kind before anything
serves; what is bound by then is let go again.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from setproctitle import setproctitle

from superd.config.loading import Configuration
from superd.config.model import Service, Settings
from superd.errors import ConfigurationError, ExitCode, NotPermitted, SuperdError, reason
from superd.master.logs import SYSLOG_SOCKET, Log
from superd.master.master import Master
from superd.master.pidfile import PidFile
from superd.master.pools import Pool, pools_of
from superd.master.rehearsal import rehearse
from superd.net.listeners import Listener, listen
from superd.observe.records import failure
from superd.plugin.registry import Plugin, installed
from superd.worker import preload

WORDS = ("stderr", "syslog")
SOMAXCONN = Path("/proc/sys/net/core/somaxconn")


@dataclass
class Plan:
    """A configuration that has been checked and rehearsed, and is ready to be bound."""

    settings: Settings
    pools: list[Pool]
    plugins: dict[str, Plugin]
    broken: dict[str, str]
    notices: list[str] = field(default_factory=list)

    @property
    def services(self) -> dict[str, Service]:
        return {name: entry for pool in self.pools for name, entry in pool.services.items()}


def plan(configuration: Configuration) -> Plan:
    """Rehearse all plugins and sort the services into pools; everything short of binding."""
    plugins = installed()
    preload.warm_up()
    verdict = rehearse(configuration, plugins, prepare=not configuration.problems)
    if configuration.problems or verdict.problems:
        raise ConfigurationError(verdict.everything(configuration))
    settings = configuration.settings
    services = {n: entry for n, entry in settings.enabled.items() if n not in verdict.broken}
    broken = {name: why for name, why in verdict.broken.items() if name in settings.enabled}
    if not services:
        raise ConfigurationError(verdict.everything(configuration))
    pools, notices = pools_of(settings, services)
    notices += _backlog_notice(services)
    return Plan(settings, pools, plugins, broken, notices)


def _backlog_notice(services: dict[str, Service]) -> list[str]:
    """Tell of a kernel limit that is lower than the backlog asked for (listen(2))."""
    try:
        most = int(SOMAXCONN.read_text())
    except (OSError, ValueError):
        return []
    wanted = max(entry.backlog for entry in services.values())
    return [f"backlog is {wanted}, but {SOMAXCONN} is {most}"] if wanted > most else []


def serve(plan: Plan, *, in_background: bool, ready: Callable[[list[Listener]], None]) -> int:
    """Bind, fork and serve; return the exit code. `ready` is called once all workers are."""
    settings = plan.settings
    raise_file_limit()
    setproctitle(f"superd: master {settings.file}")
    sinks = _sinks(settings, in_background=in_background)
    if not sinks:
        plan.notices.append("there is no syslog, so nothing is logged; name a file in [daemon] log")
    log = Log(sinks, settings.daemon.log_format)
    with contextlib.ExitStack() as undo:
        undo.callback(log.close)
        listeners = listen(plan.services)
        for listener in listeners:
            undo.callback(listener.close)
        pid_file = _pid_file(settings)
        if pid_file is not None:
            undo.callback(pid_file.remove)
        for notice in plan.notices:
            log.warning(notice)
        for name, why in plan.broken.items():
            log.error(f"not served: {why}", name)
        gc.collect()
        gc.freeze()  # what workers share with the master stays shared
        master = Master(settings, plan.pools, plan.plugins, listeners, log, plan.broken)
        undo.callback(master.close)
        master.open_control()

        def announce() -> None:
            log.info(f"ready: {len(plan.services)} services on {len(listeners)} addresses")
            ready(master.watch.listeners)

        try:
            code = master.run(announce)
        except Exception as error:
            log.write(failure("the master failed", error))
            raise
        if master.failure is not None:
            raise _failed(*master.failure)
        log.info("stopped")
        return code


def _failed(code: int, text: str) -> SuperdError:
    error = SuperdError(text)
    error.exit_code = ExitCode(code)
    return error


def _pid_file(settings: Settings) -> PidFile | None:
    path = settings.daemon.pid_file
    return None if path is None else PidFile(path)


def _sinks(settings: Settings, *, in_background: bool) -> list[str]:
    """Return where to log; a path is relative to the configuration.

    A daemon has no standard error, so syslog stands for it, where there is one.
    """
    directory = settings.file.parent
    sinks = {name if name in WORDS else str(directory / name): None for name in settings.daemon.log}
    if in_background and "stderr" in sinks:
        del sinks["stderr"]
        sinks |= {"syslog": None} if os.path.exists(SYSLOG_SOCKET) else {}
    return list(sinks)


def raise_file_limit() -> None:
    """Allow as many open files as this process may have: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def make_runtime_directory(path: Path) -> None:
    """Create the directory of the pid file or the control socket where it is missing."""
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        kind = NotPermitted if isinstance(error, PermissionError) else SuperdError
        words = reason(error).removesuffix(f": {path}")
        raise kind(f"cannot create the directory {path}: {words}") from None
