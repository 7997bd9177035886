"""Reloads the configuration: all of it, or nothing.

Runs in the master, in steps between which the running generation keeps serving:

1. a child reads and checks the files and runs the preflight of plugins; a mistake ends the reload;
2. new addresses are bound; addresses that stay keep the very same sockets, or stay pending;
3. the workers of the new generation start; if one cannot, all of them are killed;
4. the old generation drains, and listeners that no service uses any more are closed; programs that
   have a listener of an entry that is gone or changed are ended.

Raises nothing; `problems` says why a reload failed.
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
from typing import Any

from superd.config.loading import load, load_again
from superd.config.model import Service, Settings
from superd.errors import ConfigurationError, ExitCode, SuperdError, printable, reason, shown
from superd.listen.adopting import adopt
from superd.listen.failures import CannotListen
from superd.listen.listener import Listener
from superd.listen.listeners import listen
from superd.listen.names import Answers, answer_of, look_up_as_json, names_in
from superd.master.change.release import Release
from superd.master.context import Context
from superd.master.logs.log import Log, log_of
from superd.master.plan.places import located
from superd.master.plan.plan import plan_of
from superd.master.plan.preflight import preflight
from superd.master.supervisor import Supervisor
from superd.master.workers.generation import Generation
from superd.master.workers.listeners import Listeners
from superd.plugin.registry import installed
from superd.process.isolated import Job, start_isolated

STEP_TIMEOUT = 30.0  # seconds for the check, and for the start of the workers
RUNTIME_FILES = ("pid_file", "control_socket", "ban_file")  # of [daemon]; they identify this superd


class Reload:
    """One reload. `state` is "checking", "starting", "releasing", at last "done" or "failed".

    `overrides` come into force if it succeeds. The configuration is read from `texts` (see
    Settings) if they are given, else from the files.
    """

    def __init__(
        self,
        context: Context,
        supervisor: Supervisor,
        number: int,
        overrides: Mapping[str, bool],
        texts: Mapping[str, str] | None = None,
    ) -> None:
        self._context = context
        self._supervisor = supervisor
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
        self._release: Release | None = None
        self._deadline = time.monotonic() + STEP_TIMEOUT
        file = context.current.plan.settings.file
        self._check: Job | None = None
        try:
            self._check = start_isolated(
                partial(check_in_child, file, overrides, texts), STEP_TIMEOUT
            )
        except SuperdError as error:
            self._fail(str(error), error.exit_code)
        else:
            context.selector.register(self._check.reader, selectors.EVENT_READ, self._read)

    @property
    def process(self) -> int | None:
        """The process of its check."""
        return None if self._check is None else self._check.pid

    @property
    def is_over(self) -> bool:
        return self.state in ("done", "failed")

    def report(self) -> dict[str, Any]:
        """Return its progress as JSON."""
        return {
            "state": self.state,
            "problems": self.problems,
            "code": self.code,
            "changes": self.changes,
            "notices": self.notices,
        }

    def tick(self, now: float) -> None:
        """Switch once all workers of the new generation are ready, or fail."""
        new = self._next
        if self._release is not None:
            if self._release.is_over(now):
                self._finish()
        elif new is not None and new.failure is not None:
            code, text = new.failure
            self._fail(text, code)
        elif new is not None and new.is_ready:
            self._switch_to(new)
        elif not self.is_over and now >= self._deadline:
            self._fail(f"it took longer than {STEP_TIMEOUT:.0f} s", ExitCode.FAILED)

    def abandon(self) -> None:
        """Fail if it is not over, since superd stops."""
        if self._release is not None:
            self._finish()
        elif not self.is_over:
            self._fail("superd stops", ExitCode.FAILED)

    def _read(self) -> None:
        assert self._check is not None
        if not self._check.read():
            return
        outcome = self._take_outcome()
        if outcome.failure:
            self._fail(outcome.failure, ExitCode.FAILED)
        elif "problems" in outcome.result:
            self._fail("\n".join(outcome.result["problems"]), outcome.result["code"])
        else:
            # from our own child, in which no plugin ran
            settings = pickle.loads(base64.b64decode(outcome.result["settings"]))  # noqa: S301
            answers = {n: answer_of(one) for n, one in outcome.result["answers"].items()}
            self._start(settings, outcome.result["looking_up"], answers)

    def _take_outcome(self) -> Any:
        assert self._check is not None
        self._context.selector.unregister(self._check.reader)
        check, self._check = self._check, None
        return check.finish()

    def _start(self, settings: Settings, looking_up: Collection[str], answers: Answers) -> None:
        """Bind new addresses, and add a generation, whose workers the supervisor starts."""
        context, old = self._context, self._context.current
        settings = self._with_fixed_files(settings, old.plan.settings)
        try:
            for name in self.overrides.keys() - context.overrides.keys() - settings.services.keys():
                raise SuperdError(f"there is no service {shown(name)}; a new one takes a reload")
            plan = plan_of(settings, installed(), {}, looking_up)
            daemon, before = settings.daemon, old.plan.settings.daemon
            keys = ("log", "log_format", "record_log", "record_format")
            if any(getattr(daemon, key) != getattr(before, key) for key in keys):
                self._log = log_of(settings, in_background=context.in_background)
            context.tally.roster.add(list(plan.services))
            existing = old.listeners.all
            self._listeners = listen(plan.listening, existing, plan.notices, answers)
            taken = {slot.number for slot in context.slots}
            listeners = Listeners(self._listeners, context.log)
            context.ban_filters.update(listeners)  # before a program accepts there
            number = 1 + max(one.number for one in context.generations)
            new = Generation(number, plan, listeners)
            new.make_slots(taken, context.tally.roster.worker_slots)
            self._supervisor.provide_resolver(plan)
        except CannotListen as error:
            self._fail(str(located(error, settings, self.overrides)), error.exit_code)
            return
        except SuperdError as error:
            self._fail(str(error), error.exit_code)
            return
        except OSError as error:  # such as EMFILE
            self._fail(reason(error), ExitCode.FAILED)
            return
        self.notices += [one for one in plan.notices if one not in old.plan.notices]
        self.changes = differences(old.plan.services, plan.services)
        self.state = "starting"
        self._deadline = time.monotonic() + STEP_TIMEOUT
        self._next = new
        context.generations.append(new)

    def _with_fixed_files(self, settings: Settings, running: Settings) -> Settings:
        """Keep the files that identify the running superd: a change of them takes a restart."""
        for key in RUNTIME_FILES:
            wanted, is_now = getattr(settings.daemon, key), getattr(running.daemon, key)
            if wanted not in (None, is_now):
                name = key.replace("_", "-")
                self.notices.append(f"[daemon] {name} stays {is_now}: changing it takes a restart")
        kept = {key: getattr(running.daemon, key) for key in RUNTIME_FILES}
        daemon = settings.daemon.model_copy(update=kept)
        return settings.model_copy(update={"daemon": daemon})

    def _switch_to(self, new: Generation) -> None:
        context, old = self._context, self._context.current
        if new.listeners.is_stale:
            self._fail("a listener broke meanwhile; reload again", ExitCode.FAILED)
            return
        try:
            unused = adopt(self._listeners, old.listeners.all)
        except SuperdError as error:
            self._fail(str(error), error.exit_code)
            return
        if self._log is not None:
            context.log.replace_sinks(self._log)
            self._log = None
        self.state = "releasing"
        self._release = Release(context, old, new, self.changes)
        old.listeners.release()
        for name, enabled in self.overrides.items() - context.overrides.items():
            context.log.info(f"{'enabled' if enabled else 'disabled'} by the operator", name)
        context.overrides = dict(self.overrides)
        if new.plan.settings.daemon.log_level != old.plan.settings.daemon.log_level:
            context.log.set_level(new.plan.settings.daemon.log_level)
        context.current = new
        context.bans.protect(new.plan.settings.daemon.never_ban)
        self._supervisor.keep_resolver_for(new.plan)
        self._supervisor.retire(old)
        self._next = None
        for listener in unused:
            listener.close()
        self._listeners = []

    def _finish(self) -> None:
        context = self._context
        self.state, self._release = "done", None
        counted = ", ".join(
            f"{list(self.changes.values()).count(kind)} {kind}"
            for kind in ("added", "removed", "changed", "unchanged")
        )
        for notice in self.notices:
            context.log.warning(notice)
        context.log.info(f"reloaded: services {counted}")

    def _fail(self, text: str, code: int) -> None:
        """Undo all that was made for the new generation; the old one never stopped serving."""
        self.state, self.code = "failed", int(code)
        self.problems = [printable(line) for line in text.splitlines()]
        if self._check is not None:
            self._take_outcome()
        if self._log is not None:
            self._log.close()
        new, self._next = self._next, None
        if new is not None:
            new.signal(signal.SIGKILL)
            self._supervisor.retire(new)
            self._supervisor.keep_resolver_for(self._context.current.plan)
        running = {listener.socket for listener in self._context.current.listeners.all}
        for listener in self._listeners:
            if listener.socket not in running:
                listener.close()
        self._listeners = []
        for line in self.problems:
            self._context.log.error(f"not reloaded: {line}")
        self._context.log.error("the configuration is unchanged")


def check_in_child(
    file: Path, overrides: Mapping[str, bool], texts: Mapping[str, str] | None
) -> dict[str, Any]:
    """Do `load_and_check`, and look up the names to listen on, unless everything stays as it runs;
    return the results as JSON for the master.
    """
    try:
        settings, looking_up = load_and_check(file, overrides, texts)
    except ConfigurationError as error:
        return {"problems": str(error).splitlines(), "code": int(error.exit_code)}
    pickled = base64.b64encode(pickle.dumps(settings)).decode("ascii")
    answers = look_up_as_json(names_in(settings.enabled) if texts is None else ())
    return {"settings": pickled, "looking_up": looking_up, "answers": answers}


def load_and_check(
    file: Path, overrides: Mapping[str, bool], texts: Mapping[str, str] | None = None
) -> tuple[Settings, list[str]]:
    """Check a configuration and run the preflight of its plugins; return the settings, and the
    services that need a resolver.

    Raises ConfigurationError, also for services whose plugin does not work: a reload must not
    replace services that may work by broken ones.
    """
    configuration = load(file, overrides) if texts is None else load_again(file, texts, overrides)
    verdict = preflight(configuration, installed(), prepare=not configuration.problems)
    if problems := verdict.all_problems(configuration):
        raise ConfigurationError(problems)
    return configuration.settings, verdict.looking_up


def differences(old: Mapping[str, Service], new: Mapping[str, Service]) -> dict[str, str]:
    """Return by service "added", "removed", "changed" or "unchanged"."""
    changes = dict.fromkeys(old.keys() - new.keys(), "removed")
    for name, entry in new.items():
        if name not in old:
            changes[name] = "added"
        else:
            changes[name] = "unchanged" if _is_unchanged(old[name], entry) else "changed"
    return dict(sorted(changes.items()))


def _is_unchanged(old: Service, new: Service) -> bool:
    """Compare also properties that make no other address, such as the mode of a socket's file."""
    return old == new and [vars(one) for one in old.listen] == [vars(one) for one in new.listen]
