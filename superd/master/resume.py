"""`python -m superd.master.resume DESCRIPTOR [trial]`: the new program of an upgrade.

The running master executes it (change/upgrade/hand_on.py), so it is the master from then on. A
trial runs in a child, which ends again and changes nothing of what it is passed. Prints errors to
standard error; a trial that succeeds prints SERVED last.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections import Counter
from pathlib import Path

from setproctitle import setproctitle

from superd import __version__
from superd.admission.tally import Tally
from superd.errors import SuperdError
from superd.master.bans import Bans
from superd.master.change.reload import RUNTIME_FILES, load_and_check
from superd.master.change.upgrade.hand_on import SERVED, TRIAL
from superd.master.change.upgrade.state import State, read
from superd.master.change.upgrade.take_over import (
    Upgraded,
    generations_of,
    listener_of,
    listeners_of,
    plan_in_force,
    resolver_of,
    tally_of,
)
from superd.master.context import Context, MasterState
from superd.master.logs.log import Log, log_of
from superd.master.master import Master
from superd.master.pidfile import MASTER_TITLE, PidFile
from superd.master.plan.plan import Plan, plan_of
from superd.master.signals import Signals
from superd.master.start import run
from superd.master.systemd.notify import Notifier
from superd.master.workers.generation import Generation
from superd.master.workers.listeners import Listeners
from superd.plugin.registry import installed
from superd.process import preload


def main() -> int:
    """Resume as the master, or run a trial; return the exit code."""
    descriptor, *words = sys.argv[1:]
    try:
        state = read(int(descriptor))
        preload.warm_up()
        return run_trial(state) if TRIAL in words else resume(state)
    except SuperdError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)


def resume(state: State) -> int:
    """Take over from the program before, and be the master until superd stops."""
    notifier = Notifier()
    notifier.fd_store.take_up(state["stored"])
    plan = plan_in_force(state)
    setproctitle(f"{MASTER_TITLE}{plan.settings.file}")
    log = _log_of(plan, in_background=state["in background"])
    with contextlib.ExitStack() as undo:
        undo.callback(log.close)
        path, pid_file = plan.settings.daemon.pid_file, None
        if path is not None and state["pid file"] is not None:
            pid_file = PidFile(path, state["pid file"])
            undo.callback(pid_file.remove)
        log.set_level(state["log level"])
        tally = tally_of(state, plan, log)
        listeners = Listeners(listeners_of(state, plan.listening), log)
        generations = generations_of(state, plan, listeners, tally.scoreboard)
        current = generations[-1]
        current.since = state["generation since"]
        gc.collect()
        gc.freeze()  # pages that workers share with the master stay shared
        context = Context(
            current,
            tally,
            log,
            Bans(plan.settings.daemon.ban_file, log, tally.bans, state["bans"]),
            Signals(),
            notifier,
            resolver_of(state, log),
            pid_file,
            in_background=state["in background"],
            state=MasterState.SERVING,
            since=state["since"],
            generations=generations,
            serial=state["serial"],
            restarts=Counter(state["restarts"]),
            overrides=state["overrides"],
            foreign=state.get("foreign", ()),
            reload_number=state["reload"],
        )
        master = Master(context)
        undo.callback(master.close)
        if state["control"] is not None:
            master.open_control(listener_of(state["control"], {}))
        log.info(f"upgrade: superd {__version__} takes over from {state['version']}")
        context.upgrade = Upgraded(master.changes.reload(), state["upgrade"], state["version"])
        state.clear()  # its caller keeps it
        return run(master, ready=lambda: None)


def _log_of(plan: Plan, *, in_background: bool) -> Log:
    """Return the log of a plan, or standard error if it cannot be opened any more."""
    try:
        return log_of(plan.settings, in_background=in_background)
    except SuperdError as error:
        log = Log(["stderr"], "text")
        log.error(str(error))
        return log


def run_trial(state: State) -> int:
    """Do everything that `resume` and its reload would do, except what clients, workers or the
    service manager would notice.
    """
    log = Log([], "text")
    plan = plan_in_force(state)
    listeners_of(state, plan.listening)
    generations_of(state, plan, Listeners([], log), tally_of(state, plan, log).scoreboard)

    settings, looking_up = load_and_check(Path(state["file"]), state["overrides"])
    log_of(settings, in_background=state["in background"]).close()
    alone = settings.daemon.model_copy(update=dict.fromkeys(RUNTIME_FILES))
    plan = plan_of(settings.model_copy(update={"daemon": alone}), installed(), {}, looking_up)
    tally = Tally.of(list(plan.services), plan.workers)
    first = Generation(1, plan, Listeners([], log))
    first.make_slots((), tally.roster.worker_slots)
    bans = Bans(None, log, tally.bans)
    master = Master(Context(first, tally, log, bans, Signals(), Notifier({}), is_trial=True))
    with contextlib.closing(master):
        code = run(master, ready=master.handle_int)
    sys.stdout.write(SERVED)
    return code


if __name__ == "__main__":
    sys.exit(main())
