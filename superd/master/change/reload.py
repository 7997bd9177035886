"""Going over to a changed configuration: all of it, or nothing.

Runs in the master, in steps between which the running generation serves on:

1. a child reads and checks the file and rehearses its plugins; a mistake ends it here;
2. what is new is bound beside what goes on, with the very same sockets;
3. the workers of the new generation start; if one cannot, all of them go again;
4. the old generation drains, and what nobody listens on any more is closed.

Never raises; `problems` says what kept it from succeeding.
"""

from __future__ import annotations

import base64
import pickle
import selectors
import signal
import time
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superd.config.loading import load, load_again
from superd.config.model import Service, Settings
from superd.errors import ConfigurationError, ExitCode, SuperdError, printable, reason, shown
from superd.listen.adopting import adopt
from superd.listen.listeners import Listener, listen
from superd.master.logs.log import Log, log_of
from superd.master.plan.plan import plan_of
from superd.master.plan.preflight import rehearse
from superd.master.workers.generation import Generation
from superd.master.workers.listeners import Watch
from superd.plugin.registry import installed
from superd.process.isolated import Job, start_isolated

if TYPE_CHECKING:
    from superd.master.master import Master

PATIENCE = 30.0  # seconds for each of reading and starting
RUNTIME_FILES = ("pid_file", "control_socket", "ban_file")  # where running superd is found


class Reload:
    """One reload. `state` is "checking", "starting", and in the end "done" or "failed".

    `overrides` become the master's if it succeeds. With `texts` the configuration is what these
    say (see Settings), else what the files do.
    """

    def __init__(
        self,
        master: Master,
        number: int,
        overrides: Mapping[str, bool],
        texts: Mapping[str, str] | None = None,
    ) -> None:
        self.master = master
        self.number = number
        self.overrides = overrides
        self.state = "checking"
        self.problems: list[str] = []
        self.code = int(ExitCode.OK)
        self.changes: dict[str, str] = {}
        self.notices: list[str] = []
        self._next: Generation | None = None
        self._listeners: list[Listener] = []
        self._log: Log | None = None
        self._deadline = time.monotonic() + PATIENCE
        file = master.current.plan.settings.file
        self._check: Job | None = None
        try:
            self._check = start_isolated(partial(checked, file, overrides, texts), PATIENCE)
        except SuperdError as error:
            self._fail(str(error), error.exit_code)
        else:
            master.selector.register(self._check.reader, selectors.EVENT_READ, self._hear)

    @property
    def is_over(self) -> bool:
        return self.state in ("done", "failed")

    def report(self) -> dict[str, Any]:
        """Return how it goes as JSON."""
        return {
            "state": self.state,
            "problems": self.problems,
            "code": self.code,
            "changes": self.changes,
            "notices": self.notices,
        }

    def keep_time(self, now: float) -> None:
        """Go over once all workers of the new generation are ready, or give up."""
        if self.state == "starting" and self._next is not None and self._next.is_ready:
            self._go_over(self._next)
        elif not self.is_over and now >= self._deadline:
            self._fail(f"it took longer than {PATIENCE:.0f} s", ExitCode.FAILED)

    def worker_failed(self, text: str, code: int) -> None:
        """A worker of the new generation has gone before it was ready."""
        self._fail(text, code)

    def abandon(self) -> None:
        """Leave it, since superd stops."""
        if not self.is_over:
            self._fail("superd stops", ExitCode.FAILED)

    def _hear(self) -> None:
        assert self._check is not None
        if not self._check.read():
            return
        outcome = self._take_outcome()
        if outcome.failure:
            self._fail(outcome.failure, ExitCode.FAILED)
        elif "problems" in outcome.result:
            self._fail("\n".join(outcome.result["problems"]), ExitCode.CONFIGURATION)
        else:
            # from our own child, in which no plugin ran
            settings = pickle.loads(base64.b64decode(outcome.result["settings"]))  # noqa: S301
            self._start(settings, outcome.result["looking_up"])

    def _take_outcome(self) -> Any:
        assert self._check is not None
        self.master.selector.unregister(self._check.reader)
        check, self._check = self._check, None
        return check.finish()

    def _start(self, settings: Settings, looking_up: Collection[str]) -> None:
        """Bind what is new, and have the workers of a new generation started."""
        master, old = self.master, self.master.current
        settings = self._with_fixed_files(settings, old.plan.settings)
        try:
            for name in self.overrides.keys() - master.overrides.keys() - settings.services.keys():
                raise SuperdError(
                    f"there is no service {shown(name)}; one that is new takes a reload"
                )
            plan = plan_of(settings, installed(), {}, looking_up)
            daemon, before = settings.daemon, old.plan.settings.daemon
            keys = ("log", "log_format", "record_log", "record_format")
            if any(getattr(daemon, key) != getattr(before, key) for key in keys):
                self._log = log_of(settings, in_background=master.in_background)
            master.tally.roster.add(list(plan.services))
            self._listeners = listen(plan.services, old.watch.listeners, plan.notices)
            taken = {place.number for place in master.workers.places}
            watch = Watch(self._listeners, master.log)
            number = 1 + max(one.number for one in master.workers.generations)
            new = Generation(number, plan, watch)
            new.make_places(taken, master.tally.roster.places)
            master.provide_resolver(plan)
        except SuperdError as error:
            self._fail(str(error), error.exit_code)
            return
        except OSError as error:  # such as that no descriptor is free
            self._fail(reason(error), ExitCode.FAILED)
            return
        self.notices += plan.notices
        self.changes = differences(old.plan.services, plan.services)
        self.state = "starting"
        self._deadline = time.monotonic() + PATIENCE
        self._next = new
        master.workers.generations.append(new)

    def _with_fixed_files(self, settings: Settings, running: Settings) -> Settings:
        """Keep the files by which the running superd is known."""
        for key in RUNTIME_FILES:
            wanted, is_now = getattr(settings.daemon, key), getattr(running.daemon, key)
            if wanted not in (None, is_now):
                name = key.replace("_", "-")
                self.notices.append(f"[daemon] {name} stays {is_now}: another one takes a restart")
        kept = {key: getattr(running.daemon, key) for key in RUNTIME_FILES}
        daemon = settings.daemon.model_copy(update=kept)
        return settings.model_copy(update={"daemon": daemon})

    def _go_over(self, new: Generation) -> None:
        master, old = self.master, self.master.current
        if new.watch.is_overtaken:
            self._fail("a listener was broken meanwhile; reload once more", ExitCode.FAILED)
            return
        try:
            left = adopt(self._listeners, old.watch.listeners)
        except SuperdError as error:
            self._fail(str(error), error.exit_code)
            return
        if self._log is not None:
            master.log.go_over_to(self._log)
            self._log = None
        old.watch.forget()
        for name, enabled in self.overrides.items() - master.overrides.items():
            master.log.info(f"{'enabled' if enabled else 'disabled'} by the operator", name)
        master.overrides = dict(self.overrides)
        if new.plan.settings.daemon.log_level != old.plan.settings.daemon.log_level:
            master.log.log_from(new.plan.settings.daemon.log_level)
        master.workers.current = new
        master.configured(new.plan)
        master.workers.retire(old)
        for listener in left:
            listener.close()
        self.state = "done"
        counted = ", ".join(
            f"{list(self.changes.values()).count(kind)} {kind}"
            for kind in ("added", "removed", "changed", "unchanged")
        )
        for notice in self.notices:
            master.log.warning(notice)
        master.log.info(f"reloaded: services {counted}")

    def _fail(self, text: str, code: int) -> None:
        """Let go of all that was made for the new generation; the old one never stopped."""
        self.state, self.code = "failed", int(code)
        self.problems = [printable(line) for line in text.splitlines()]
        if self._check is not None:
            self._take_outcome()
        if self._log is not None:
            self._log.close()
        new, self._next = self._next, None
        if new is not None:
            new.signal(signal.SIGKILL)
            self.master.workers.retire(new)
            self.master.configured(self.master.current.plan)
        running = {listener.socket for listener in self.master.current.watch.listeners}
        for listener in self._listeners:
            if listener.socket not in running:
                listener.close()
        for line in self.problems:
            self.master.log.error(f"not reloaded: {line}")
        self.master.log.error("the configuration stays as it was")


def checked(
    file: Path, overrides: Mapping[str, bool], texts: Mapping[str, str] | None
) -> dict[str, Any]:
    """Read, check and rehearse a configuration; runs in a child."""
    try:
        settings, looking_up = examined(file, overrides, texts)
    except ConfigurationError as error:
        return {"problems": str(error).splitlines()}
    pickled = base64.b64encode(pickle.dumps(settings)).decode("ascii")
    return {"settings": pickled, "looking_up": looking_up}


def examined(
    file: Path, overrides: Mapping[str, bool], texts: Mapping[str, str] | None = None
) -> tuple[Settings, list[str]]:
    """Read, check and rehearse a configuration; return it, and which services need a resolver.

    Raises ConfigurationError, also for services that would not work: the running ones might.
    """
    configuration = load(file, overrides) if texts is None else load_again(file, texts, overrides)
    verdict = rehearse(configuration, installed(), prepare=not configuration.problems)
    if problems := verdict.everything(configuration):
        raise ConfigurationError(problems)
    return configuration.settings, verdict.looking_up


def differences(old: Mapping[str, Service], new: Mapping[str, Service]) -> dict[str, str]:
    """Return for each service whether it was added, removed, changed or left as it was."""
    changes = dict.fromkeys(old.keys() - new.keys(), "removed")
    for name, entry in new.items():
        if name not in old:
            changes[name] = "added"
        else:
            changes[name] = "unchanged" if _is_unchanged(old[name], entry) else "changed"
    return dict(sorted(changes.items()))


def _is_unchanged(old: Service, new: Service) -> bool:
    """Compare also what makes no other address, such as the mode of a socket's file."""
    return old == new and [vars(one) for one in old.listen] == [vars(one) for one in new.listen]
