"""The running program's half of an upgrade: it tries the new program, then executes it.

Runs in the master; the trial runs in a child. Raises nothing: `problems` says why an upgrade
failed, and then nothing has changed.
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
from typing import Any

from superd.errors import ExitCode, SuperdError, printable, reason
from superd.master.change.upgrade.state import write
from superd.master.context import Context
from superd.process.forking import describe_exit
from superd.process.isolated import Job, start_isolated

PROGRAM = "superd.master.resume"
TRIAL = "trial"
SERVED = "could serve\n"  # the last line that a successful trial prints
TRIAL_TIMEOUT = 60.0  # seconds
ANSWER_TIMEOUT = 5.0  # seconds that the upgrade waits for pending answers of the control socket
MAX_PROBLEM_LINES = 40  # of what a failed trial prints
MAX_PROBLEM_BYTES = 32 * 1024


class Upgrade:
    """One upgrade. `state` is "trying", then "ready" or "failed"; the new program reports the
    states after that (Upgraded).
    """

    def __init__(self, context: Context, number: int) -> None:
        self._context = context
        self.number = number
        self.state = "trying"
        self.problems: list[str] = []
        self.code = int(ExitCode.OK)
        self._deadline = time.monotonic() + TRIAL_TIMEOUT
        self._trial: Job | None = None
        context.log.info("upgrade: trying the program that is installed now")
        try:
            descriptor, passed = write(context, number)
            try:
                trial = partial(run_trial, command(descriptor, TRIAL), passed)
                self._trial = start_isolated(trial, TRIAL_TIMEOUT)
            finally:
                os.close(descriptor)
        except (OSError, SuperdError) as error:
            self._fail([reason(error)], ExitCode.FAILED)
        else:
            context.selector.register(self._trial.reader, selectors.EVENT_READ, self._read)

    @property
    def process(self) -> int | None:
        """The process of its trial."""
        return None if self._trial is None else self._trial.pid

    @property
    def is_over(self) -> bool:
        return self.state == "failed"

    def report(self) -> dict[str, Any]:
        """Return its progress as JSON, with the keys of a reload's report."""
        return {
            "state": self.state,
            "problems": self.problems,
            "code": self.code,
            "changes": {},
            "notices": [],
        }

    def tick(self, now: float) -> None:
        """Execute the new program once all clients of the control socket have their answers; fail
        if the trial takes too long.
        """
        control = self._context.control
        is_late = now >= self._deadline
        if self.state == "ready" and (control is None or not control.clients or is_late):
            self._execute()
        elif self.state == "trying" and is_late:
            self._fail([f"the trial took longer than {TRIAL_TIMEOUT:.0f} s"], ExitCode.FAILED)

    def abandon(self) -> None:
        """Fail if it is not over, since superd stops."""
        if not self.is_over:
            self._fail(["superd stops"], ExitCode.FAILED)

    def _read(self) -> None:
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
            self._deadline = time.monotonic() + ANSWER_TIMEOUT

    def _end_trial(self) -> Any:
        assert self._trial is not None
        self._context.selector.unregister(self._trial.reader)
        trial, self._trial = self._trial, None
        return trial.finish()

    def _execute(self) -> None:
        """Execute the new program. No signal is lost: signals that are queued are handled first, at
        the next turn of the loop, and later ones stay pending for the new program.
        """
        context = self._context
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        if context.signals.are_pending:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            return
        passed: list[int] = []
        try:
            context.log.info("upgrade: the new program takes over")
            context.bans.save()
            sys.stdout.flush()
            sys.stderr.flush()
            descriptor, passed = write(context, self.number)
            for number in passed:
                os.set_inheritable(number, True)
            environment = {**os.environ, **context.notifier.environment}
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
            self._context.log.error(f"not upgraded: {line}")
        self._context.log.error("the running program is unchanged")


def command(*arguments: object) -> list[str]:
    """Return the command line of the new program: the same interpreter and options, and -P, so
    that modules are never imported from the current directory.
    """
    options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    options = options[:-2] if options[-2:-1] == ["-m"] else options[:-1]
    safe = [] if "-P" in options else ["-P"]
    return [sys.executable, *options, *safe, "-m", PROGRAM, *map(str, arguments)]


def run_trial(call: Sequence[str], passed: Sequence[int]) -> dict[str, Any]:
    """Run the trial of the new program; return its exit code, and why it cannot serve."""
    done = subprocess.run(  # noqa: S603  it is superd
        call,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        pass_fds=passed,
        check=False,
    )
    if done.returncode == ExitCode.OK and done.stdout.endswith(SERVED.encode()):
        return {"code": ExitCode.OK, "problems": []}
    printed = done.stderr[-MAX_PROBLEM_BYTES:].decode(errors="replace").splitlines()
    known = done.returncode in set(ExitCode) - {ExitCode.OK}
    return {
        "code": done.returncode if known else ExitCode.FAILED,
        "problems": printed[-MAX_PROBLEM_LINES:] or [f"its trial {describe_exit(done.returncode)}"],
    }
