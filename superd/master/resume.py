"""`python -m superd.master.resume DESCRIPTOR [trial]`: the program that an upgrade goes over to.

Runs as the master; or for a trial as a process that is thrown away, which touches nothing of what
is passed on. Prints what is wrong, or that nothing is.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from pathlib import Path

from setproctitle import setproctitle

from superd import __version__
from superd.admission.tally import Tally
from superd.errors import SuperdError
from superd.master.bans import Bans
from superd.master.change.reload import RUNTIME_FILES, examined
from superd.master.change.upgrade.hand_on import SERVED, TRIAL
from superd.master.change.upgrade.state import State, read
from superd.master.change.upgrade.take_over import (
    Upgraded,
    generations_of,
    listener_of,
    listeners_of,
    plan_in_force,
    readers_of,
    resolver_of,
    tally_of,
)
from superd.master.logs.log import Log, log_of
from superd.master.master import Master
from superd.master.master import State as Phase
from superd.master.pidfile import MASTER_TITLE, PidFile
from superd.master.plan.plan import Plan, plan_of
from superd.master.signals import Signals
from superd.master.start import run
from superd.master.systemd.notify import Supervisor
from superd.master.workers.generation import Generation
from superd.master.workers.listeners import Watch
from superd.plugin.registry import installed
from superd.process import preload


def main() -> int:
    """Take the place of the program before, or try to; return the exit code."""
    descriptor, *words = sys.argv[1:]
    try:
        state = read(int(descriptor))
        preload.warm_up()
        return try_out(state) if TRIAL in words else go_on(state)
    except SuperdError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)


def go_on(state: State) -> int:
    """Be the master from here on."""
    supervisor = Supervisor()
    supervisor.store.take_up(state["stored"])
    plan = plan_in_force(state)
    setproctitle(f"{MASTER_TITLE}{plan.settings.file}")
    log = _log_of(plan, in_background=state["in background"])
    with contextlib.ExitStack() as undo:
        undo.callback(log.close)
        path, pid_file = plan.settings.daemon.pid_file, None
        if path is not None and state["pid file"] is not None:
            pid_file = PidFile(path, state["pid file"])
            undo.callback(pid_file.remove)
        log.log_from(state["log level"])
        tally = tally_of(state, plan, log)
        watch = Watch(listeners_of(state, plan.services), log)
        *older, current = generations_of(state, plan, watch)
        current.since = state["generation since"]
        gc.collect()
        gc.freeze()  # what workers share with the master stays shared
        master = Master(
            current,
            tally,
            log,
            Signals(),
            supervisor,
            in_background=state["in background"],
            pid_file=pid_file,
            resolving=resolver_of(state, log),
            bans=Bans(plan.settings.daemon.ban_file, log, tally.bans, state["bans"]),
        )
        undo.callback(master.close)
        master.workers.take_up(older, readers_of(state))
        master.since, master.workers.serial = state["since"], state["serial"]
        master.workers.restarts.update(state["restarts"])
        master.changes.reload_number = state["reload"]
        master.overrides = state["overrides"]
        if state["control"] is not None:
            master.open_control(listener_of(state["control"], {}))
        master.state = Phase.SERVING
        log.info(f"upgrade: superd {__version__} goes on in place of {state['version']}")
        master.changes.upgrade = Upgraded(master, state["upgrade"], state["version"])
        return run(master, ready=lambda: None)


def _log_of(plan: Plan, *, in_background: bool) -> Log:
    """Return the log of a plan; where it cannot be opened any more, standard error has to do."""
    try:
        return log_of(plan.settings, in_background=in_background)
    except SuperdError as error:
        log = Log(["stderr"], "text")
        log.error(str(error))
        return log


def try_out(state: State) -> int:
    """Do all that `go_on` and its reload would do, but for what others would notice."""
    plan = plan_in_force(state)
    listeners_of(state, plan.services)
    generations_of(state, plan, Watch([], Log([], "text")))
    tally_of(state, plan, Log([], "text"))

    settings, looking_up = examined(Path(state["file"]), state["overrides"])
    log_of(settings, in_background=state["in background"]).close()
    alone = settings.daemon.model_copy(update=dict.fromkeys(RUNTIME_FILES))
    plan = plan_of(settings.model_copy(update={"daemon": alone}), installed(), {}, looking_up)
    log = Log([], "text")
    tally = Tally.of(list(plan.services), plan.workers)
    first = Generation(1, plan, Watch([], log))
    first.make_places((), tally.roster.places)
    master = Master(first, tally, log, Signals(), Supervisor({}), is_trial=True)
    with contextlib.closing(master):
        code = run(master, ready=master.handle_int)
    sys.stdout.write(SERVED)
    return code


if __name__ == "__main__":
    sys.exit(main())
