"""Becomes a daemon and reports to the calling command whether the start succeeded (daemon(7)).

Runs in the command line: `superd start` waits for the verdict of the daemon, which inherits nothing
of the terminal. It forks, so the caller must not have started threads. Raises SuperdError in the
daemon if the calling command has ended.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass

from superd.errors import ExitCode, SuperdError
from superd.process.forking import signals_blocked


@dataclass(frozen=True)
class Verdict:
    """The result of a start: the exit code of the calling command and the text that it prints."""

    code: int
    text: str


class Launch:
    """The daemon's end of the pipe to the calling command."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def report(self, verdict: Verdict) -> None:
        """Send the verdict, upon which the caller ends. Only the first verdict counts."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            try:
                with open(descriptor, "w", encoding="utf-8") as pipe:
                    json.dump([verdict.code, verdict.text], pipe)
            except BrokenPipeError:
                message = "the command that started superd ended before superd was ready"
                raise SuperdError(message) from None


def detach() -> Launch | Verdict:
    """Return a Launch in the daemon; in the calling command, wait for the verdict and return it.

    Forks twice around setsid(2), so that the daemon can never acquire a terminal.
    """
    reader, writer = os.pipe()
    with signals_blocked():
        pid = os.fork()
    if pid:
        os.close(writer)
        os.waitpid(pid, 0)
        return _wait(reader)
    os.close(reader)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    os.umask(0o022)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    return Launch(writer)


def _wait(reader: int) -> Verdict:
    with open(reader, encoding="utf-8") as pipe:
        text = pipe.read()
    try:
        code, message = json.loads(text)
    except ValueError:
        return Verdict(ExitCode.FAILED, "superd ended before it was ready; see its log")
    return Verdict(code, message)


def open_standard_descriptors() -> None:
    """Open those of 0, 1 and 2 that are closed, as output would be written to a socket there.

    Python sets its own streams to None for descriptors that were closed when it started.
    """
    for standard in (0, 1, 2):
        try:
            os.fstat(standard)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
