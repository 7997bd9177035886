"""The running program's half of an upgrade: it tries the new one, and gives its place to it.

Runs in the master; the trial runs in a child. Never raises: `problems` says what kept it from
succeeding, and then nothing has changed.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from superd.errors import ExitCode, SuperdError, printable, reason
from superd.master.change.upgrade.state import write
from superd.process.forking import how_it_ended
from superd.process.isolated import Job, start_isolated

if TYPE_CHECKING:
    from superd.master.master import Master

PROGRAM = "superd.master.resume"
TRIAL = "trial"
SERVED = "could serve\n"  # the last word of a trial that has succeeded
PATIENCE = 60.0  # seconds for a trial
POLITE = 5.0  # seconds at most for answers that are still on their way
MOST_LINES = 40  # of what a failed trial has to say
MOST_BYTES = 32 * 1024


class Upgrade:
    """One upgrade. `state` is "trying", then "ready" or "failed"; the rest the next program has to
    tell.
    """

    def __init__(self, master: Master, number: int) -> None:
        self.master = master
        self.number = number
        self.state = "trying"
        self.problems: list[str] = []
        self.code = int(ExitCode.OK)
        self._deadline = time.monotonic() + PATIENCE
        self._trial: Job | None = None
        master.log.info("upgrade: trying the program that is installed now")
        try:
            descriptor, passed = write(master, number)
            try:
                trial = partial(tried, command(descriptor, TRIAL), passed)
                self._trial = start_isolated(trial, PATIENCE)
            finally:
                os.close(descriptor)
        except (OSError, SuperdError) as error:
            self._fail([reason(error)], ExitCode.FAILED)
        else:
            master.selector.register(self._trial.reader, selectors.EVENT_READ, self._hear)

    @property
    def is_over(self) -> bool:
        return self.state == "failed"

    def report(self) -> dict[str, Any]:
        """Return how it goes as JSON, with the keys of a reload's report."""
        told = {"state": self.state, "problems": self.problems, "code": self.code}
        return {**told, "changes": {}, "notices": []}

    def keep_time(self, now: float) -> None:
        """Give up a trial that takes too long; go over once whoever asks something is answered."""
        control = self.master.control
        is_late = now >= self._deadline
        if self.state == "ready" and (control is None or not control.clients or is_late):
            self._go_over()
        elif self.state == "trying" and is_late:
            self._fail([f"the trial took longer than {PATIENCE:.0f} s"], ExitCode.FAILED)

    def abandon(self) -> None:
        """Leave it, since superd stops."""
        if not self.is_over:
            self._fail(["superd stops"], ExitCode.FAILED)

    def _hear(self) -> None:
        assert self._trial is not None
        if not self._trial.read():
            return
        outcome = self._end_trial()
        if outcome.failure:
            self._fail([outcome.failure], ExitCode.FAILED)
        elif outcome.result["problems"]:
            self._fail(outcome.result["problems"], outcome.result["code"])
        else:
            self.state = "ready"
            self._deadline = time.monotonic() + POLITE

    def _end_trial(self) -> Any:
        assert self._trial is not None
        self.master.selector.unregister(self._trial.reader)
        trial, self._trial = self._trial, None
        return trial.finish()

    def _go_over(self) -> None:
        """Execute the new program. No signal is lost: those that came before are heeded first, at
        the next turn of the loop, and those that come from here on are the new program's.
        """
        master = self.master
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        if master.signals.are_waiting:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            return
        passed: list[int] = []
        try:
            master.log.info("upgrade: the new program takes over")
            master.bans.save()
            sys.stdout.flush()
            sys.stderr.flush()
            descriptor, passed = write(master, self.number)
            for number in passed:
                os.set_inheritable(number, True)
            environment = {**os.environ, **master.supervisor.environment}
            os.execve(sys.executable, command(descriptor), environment)  # noqa: S606  no shell
        except OSError as error:
            for number in passed:
                os.set_inheritable(number, False)
            if passed:
                os.close(descriptor)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            self._fail([f"cannot execute {sys.executable}: {reason(error)}"], ExitCode.FAILED)

    def _fail(self, problems: Sequence[str], code: int) -> None:
        self.state, self.code = "failed", int(code)
        self.problems = [printable(line) for line in problems]
        if self._trial is not None:
            self._end_trial()
        for line in self.problems:
            self.master.log.error(f"not upgraded: {line}")
        self.master.log.error("the program stays as it was")


def command(*arguments: object) -> list[str]:
    """Return how the new program is called: by the same interpreter, with the same options, and
    never from whatever directory this one happens to be in.
    """
    options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    options = options[:-2] if options[-2:-1] == ["-m"] else options[:-1]
    safe = [] if "-P" in options else ["-P"]
    return [sys.executable, *options, *safe, "-m", PROGRAM, *map(str, arguments)]


def tried(call: Sequence[str], passed: Sequence[int]) -> dict[str, Any]:
    """Call the new program; return its exit code, and why it cannot serve."""
    done = subprocess.run(  # noqa: S603  it is superd
        call,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        pass_fds=passed,
        check=False,
    )
    if done.returncode == ExitCode.OK and done.stdout.endswith(SERVED.encode()):
        return {"code": ExitCode.OK, "problems": []}
    lines = done.stderr[-MOST_BYTES:].decode(errors="replace").splitlines()[-MOST_LINES:]
    known = done.returncode in set(ExitCode) - {ExitCode.OK}
    return {
        "code": done.returncode if known else ExitCode.FAILED,
        "problems": lines or [f"its trial {how_it_ended(done.returncode)}"],
    }
