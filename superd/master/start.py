"""From a plan to a running master, in the order that leaves nothing behind on failure.

Runs in the process that becomes the master. Raises SuperdError of every kind before anything
serves; what is bound by then is let go again.
"""

from __future__ import annotations

import contextlib
import gc
import resource
from collections.abc import Callable
from pathlib import Path

from setproctitle import setproctitle

from superd.admission.tally import Tally
from superd.config.model import Settings
from superd.errors import ExitCode, NotPermitted, SuperdError, reason
from superd.listen.inherited import Inheritance, match
from superd.listen.listeners import Listener, listen
from superd.master.logs.log import Log, log_of
from superd.master.master import Master
from superd.master.pidfile import MASTER_TITLE, PidFile
from superd.master.plan.plan import Plan
from superd.master.signals import Signals
from superd.master.systemd.notify import Supervisor
from superd.master.workers.generation import Generation
from superd.master.workers.listeners import Watch
from superd.observe.records import failure


def serve(
    plan: Plan,
    inheritance: Inheritance,
    *,
    in_background: bool,
    ready: Callable[[list[Listener]], None],
) -> int:
    """Bind what was not inherited, fork and serve; return the exit code. `ready` is called once all
    workers are.
    """
    settings = plan.settings
    raise_file_limit()
    supervisor = Supervisor()
    setproctitle(f"{MASTER_TITLE}{settings.file}")
    log = log_of(settings, in_background=in_background)
    if not log.sinks:
        plan.notices.append("there is no syslog, so nothing is logged; name a file in [daemon] log")
    with contextlib.ExitStack() as undo:
        undo.callback(log.close)
        signals = Signals()  # from here on none may end superd half-way: there is what to undo
        pid_file = _pid_file(settings)  # first: another superd would have all addresses, too
        if pid_file is not None:
            undo.callback(pid_file.remove)
        listeners = _bound(plan, inheritance, supervisor, log)
        undo.callback(_close, listeners)
        for notice in plan.notices:
            log.warning(notice)
        for name, why in plan.broken.items():
            log.error(f"not served: {why}", name)
        gc.collect()
        gc.freeze()  # what workers share with the master stays shared
        tally = Tally.of(list(plan.services), plan.workers)
        first = Generation(1, plan, Watch(listeners, log))
        first.make_places((), tally.roster.places)
        master = Master(
            first, tally, log, signals, supervisor, in_background=in_background, pid_file=pid_file
        )
        undo.callback(master.close)
        master.open_control()

        def announce() -> None:
            log.info(f"ready: {len(plan.services)} services on {len(listeners)} addresses")
            ready(master.current.watch.listeners)

        return run(master, announce)


def run(master: Master, ready: Callable[[], None]) -> int:
    """Run the master to its end; raises SuperdError where it gave up, or whatever broke it."""
    try:
        code = master.run(ready)
    except Exception as error:
        master.log.write(failure("the master failed", error))
        raise
    if master.failure is not None:
        raise _failed(*master.failure)
    master.log.info("stopped")
    return code


def _bound(
    plan: Plan, inheritance: Inheritance, supervisor: Supervisor, log: Log
) -> list[Listener]:
    """Listen on all addresses, on those with sockets that are there already."""
    existing = match(plan.services, inheritance, plan.notices)
    supervisor.store.resume(inheritance, existing)
    try:
        return listen(plan.services, existing, plan.notices)
    except SuperdError:
        for notice in plan.notices:  # a socket that nobody wanted may be what is in the way
            log.warning(notice)
        _close(existing)
        raise


def _failed(code: int, text: str) -> SuperdError:
    error = SuperdError(text)
    error.exit_code = ExitCode(code)
    return error


def _close(listeners: list[Listener]) -> None:
    for listener in listeners:
        listener.close()


def _pid_file(settings: Settings) -> PidFile | None:
    path = settings.daemon.pid_file
    return None if path is None else PidFile(path)


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
