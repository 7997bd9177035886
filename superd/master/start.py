"""Starts the master from a plan, in an order that leaves nothing behind on failure.

Runs in the process that becomes the master. Raises SuperdError before any worker serves;
the sockets that are bound by then are closed again.
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
from superd.listen.failures import CannotListen
from superd.listen.inherited import Inheritance, match
from superd.listen.listener import Listener
from superd.listen.listeners import listen
from superd.listen.names import look_up, names_in
from superd.master.bans import Bans
from superd.master.context import Context
from superd.master.left_behind import end_left_behind
from superd.master.logs.log import Log, log_of
from superd.master.master import Master
from superd.master.pidfile import MASTER_TITLE, PidFile
from superd.master.plan.places import located, located_lines
from superd.master.plan.plan import Plan
from superd.master.signals import Signals
from superd.master.systemd.notify import Notifier
from superd.master.workers.generation import Generation
from superd.master.workers.listeners import Listeners
from superd.observe.records import failure
from superd.process.procfs import own_children


def serve(
    plan: Plan,
    inheritance: Inheritance,
    *,
    in_background: bool,
    ready: Callable[[list[Listener]], None],
) -> int:
    """Bind the addresses that were not inherited, start workers and serve; return the exit code.
    `ready` is called once all workers are ready.
    """
    raise_file_limit()
    notifier = Notifier()
    setproctitle(f"{MASTER_TITLE}{plan.settings.file}")
    log = log_of(plan.settings, in_background=in_background)
    if not log.sinks:
        plan.notices.append("there is no syslog, so nothing is logged; name a file in [daemon] log")
    plan.notices += [f"{problem}; superd tries again with each line" for problem in log.absent]
    with contextlib.ExitStack() as undo:
        undo.callback(log.close)
        signals = Signals()  # caught from here on: what follows has to be undone
        pid_file = _pid_file(plan.settings)  # before binding: another superd has the addresses, too
        if pid_file is not None:
            undo.callback(pid_file.remove)
        listeners = _bound(plan, inheritance, notifier, log, may_end=pid_file is not None)
        pending = [one.failure for one in listeners if one.failure is not None]
        plan.pending = located_lines(pending, plan.settings, {})
        undo.callback(_close, listeners)
        for notice in plan.notices:
            log.warning(notice)
        for name, why in plan.broken.items():
            log.error(f"not served: {why}", name)
        for line in plan.pending:
            log.error(f"{line}; it is tried again")
        gc.collect()
        gc.freeze()  # pages that workers share with the master stay shared
        tally = Tally.of(list(plan.services), plan.workers)
        first = Generation(1, plan, Listeners(listeners, log))
        first.make_slots((), tally.roster.worker_slots)
        context = Context(
            first,
            tally,
            log,
            Bans(plan.settings.daemon.ban_file, log, tally.bans),
            signals,
            notifier,
            pid_file=pid_file,
            foreign=own_children(),
            in_background=in_background,
        )
        master = Master(context)
        undo.callback(master.close)
        context.ban_filters.update(first.listeners)
        master.open_control()

        def announce() -> None:
            found = context.current.listeners
            number = len(found.all) - len(found.pending)
            left = f", {len(found.pending)} not bound yet" if found.pending else ""
            log.info(f"ready: {len(plan.services)} services on {number} addresses{left}")
            ready([one for one in found.all if one.failure is None])

        return run(master, announce)


def run(master: Master, ready: Callable[[], None]) -> int:
    """Run the master until it stops. Raises SuperdError if it could not start; any other exception
    is a defect, and logged.
    """
    context = master.context
    try:
        code = master.run(ready)
    except Exception as error:
        context.log.write(failure("the master failed", error))
        raise
    if context.failure is not None:
        raise _failed(*context.failure)
    context.log.info("stopped")
    return code


def _bound(
    plan: Plan, inheritance: Inheritance, notifier: Notifier, log: Log, *, may_end: bool
) -> list[Listener]:
    """Return listeners on all addresses, with inherited sockets where there are some. `may_end`:
    no other superd with this configuration runs, so programs that have one are left behind.
    """
    services = plan.listening
    answers = look_up(names_in(services))
    existing = match(services, inheritance, plan.notices, answers)
    notifier.fd_store.resume(inheritance, existing)
    if may_end:
        end_left_behind(plan, existing, log)
    serves_others = plan.settings.daemon.on_bind_failure == "serve-others"
    try:
        return listen(services, existing, plan.notices, answers, serves_others=serves_others)
    except CannotListen as error:
        for notice in plan.notices:  # they may name the inherited socket that blocks the bind
            log.warning(notice)
        _close(existing)
        raise located(error, plan.settings, {}) from None


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
    """Raise the limit of open files as far as possible: each connection needs one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def make_runtime_directory(path: Path) -> None:
    """Create the directory of the pid file or the control socket if it is missing."""
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        kind = NotPermitted if isinstance(error, PermissionError) else SuperdError
        words = reason(error).removesuffix(f": {path}")
        raise kind(f"cannot create the directory {path}: {words}") from None
