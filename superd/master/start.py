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
from superd.errors import ConfigurationError, SuperdError, reason
from superd.master.logs import SYSLOG_SOCKET, Log
from superd.master.master import Master
from superd.master.pidfile import PidFile
from superd.master.pools import Pool, pools_of
from superd.master.rehearsal import rehearse
from superd.net.listeners import Listener, listen
from superd.plugin.registry import Plugin, installed
from superd.worker import preload

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
    settings = configuration.settings
    plugins = installed()
    preload.warm_up()
    verdict = rehearse(configuration, plugins, prepare=True)
    if verdict.problems:
        raise ConfigurationError(verdict.problems)
    services = {n: entry for n, entry in settings.enabled.items() if n not in verdict.broken}
    broken = {name: why for name, why in verdict.broken.items() if name in settings.enabled}
    if not services:
        whole = [configuration.problem(name, (), why) for name, why in broken.items()]
        nothing = configuration.problem(next(iter(settings.services)), (), "no service is enabled")
        raise ConfigurationError(whole or [nothing])
    pools, left_out = pools_of(settings, services)
    notices = []
    if left_out:
        notices.append(f"not root, so this confinement is left out: {', '.join(left_out)}")
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
    log = Log(_sinks(settings, in_background=in_background), settings.daemon.log_format)
    with contextlib.ExitStack() as undo:
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
            ready(master.listeners)

        code = master.run(announce)
        if master.failure is not None:
            raise _failed(*master.failure)
        log.info("stopped")
        return code


def _failed(code: int, text: str) -> SuperdError:
    error = SuperdError(text)
    error.exit_code = type(error.exit_code)(code)
    return error


def _pid_file(settings: Settings) -> PidFile | None:
    path = settings.daemon.pid_file
    return None if path is None else PidFile(path)


def _sinks(settings: Settings, *, in_background: bool) -> list[str]:
    """Return where to log: a daemon has no standard error, so syslog stands for it."""
    sinks = list(settings.daemon.log)
    if in_background:
        has_syslog = os.path.exists(SYSLOG_SOCKET)
        sinks = ["syslog" if name == "stderr" else name for name in sinks]
        sinks = [name for name in sinks if name != "syslog" or has_syslog]
    return sinks


def raise_file_limit() -> None:
    """Allow as many open files as this process may have: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def make_runtime_directory(path: Path) -> None:
    """Create the directory of the pid file and the control socket where it is missing."""
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise SuperdError(f"cannot create {path}: {reason(error)}") from None
