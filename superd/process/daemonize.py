"""Becoming a daemon, and telling the one who started it how that went (daemon(7)).

Runs in the command line: the process that typed `superd start` waits for the verdict of the
daemon, which inherits nothing of the terminal. Never forks where there are threads. Raises
SuperdError in a daemon that nobody waits for any more.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass

from superd.errors import ExitCode, SuperdError


@dataclass(frozen=True)
class Verdict:
    """How a start went: the exit code for the caller and what to print."""

    code: int
    text: str


class Launch:
    """The daemon's end of the pipe to the one who waits."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def tell(self, verdict: Verdict) -> None:
        """Let the caller go. Only the first verdict counts."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            try:
                with open(descriptor, "w", encoding="utf-8") as pipe:
                    json.dump([verdict.code, verdict.text], pipe)
            except BrokenPipeError:
                message = "whoever started superd was gone before it was ready"
                raise SuperdError(message) from None


def detach() -> Launch | Verdict:
    """Return a Launch in the daemon; in the caller, its verdict once there is one.

    Forks twice around setsid, so that the daemon can never get a terminal again.
    """
    reader, writer = os.pipe()
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
    """Make sure that 0, 1 and 2 are open: a socket with such a number would be written to.

    Python's own streams for those that were closed at its start are None until then.
    """
    for standard in (0, 1, 2):
        try:
            os.fstat(standard)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
