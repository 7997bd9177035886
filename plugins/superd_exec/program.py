"""One run of a program: started with a single vfork and exec, waited for, and ended if need be.

A program has a session of its own, so that all of it can be signalled, no descriptor but 0, 1 and
2, and the signals that any program starts with. Raises OSError where it cannot be started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence

NEEDED = 3  # descriptors, to start a program: both ends of a pipe, and what it is waited with
GRACE = 0.7  # seconds between TERM and KILL
AT_ONCE = 65536  # bytes: all that a pipe holds (pipe(7))
LONGEST_LINE = 2000
MOST_LINES = 1000  # of one program's standard error; the others are counted

ALL_SIGNALS = [number for number in signal.valid_signals() if number not in (9, 19)]


class Program:
    """A program that runs. `ended` is awaited, and ends it with its whole process group; then
    `outcome` tells how it ended, with what it used.
    """

    def __init__(self, pid: int, errors: int | None, log: Callable[[str], None]) -> None:
        self.pid = pid
        self.outcome = ""
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(pid)
        self._errors = errors
        self._log = log
        self._pending = b""
        self._lines = 0
        if errors is not None:
            self._loop.add_reader(errors, self._read_errors)

    async def ended(self, max_run_time: float) -> None:
        """Wait for the end; end it if that takes too long, or if cancelled."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, _settle, done)
        why = ""
        try:
            await asyncio.wait([done], timeout=max_run_time or None)
            if not done.done():
                why = "max-run-time is over; "
        finally:
            await self._see_it_end(done)
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._close_errors()
            self.outcome = why + self._reaped()

    async def _see_it_end(self, done: asyncio.Future[None]) -> None:
        """End it if need be, and see that through: time-outs cancel again and again."""
        ending = None if done.done() else self._loop.create_task(self._end(done))
        while ending is not None and not ending.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([ending])

    async def _end(self, done: asyncio.Future[None]) -> None:
        self.signal(signal.SIGTERM)
        await asyncio.wait([done], timeout=GRACE)
        self.signal(signal.SIGKILL)  # those of its group that are left, too
        await done

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _reaped(self) -> str:
        try:
            _, status, usage = os.wait4(self.pid, os.WNOHANG)
        except ChildProcessError:
            return "status unknown"
        code = os.waitstatus_to_exitcode(status)
        how = f"status {code}" if code >= 0 else f"signal {-code}"
        return f"{how}, {usage.ru_utime + usage.ru_stime:.3f} s of CPU"

    def _read_errors(self) -> None:
        """Log what it writes to standard error, line by line."""
        assert self._errors is not None
        try:
            data = os.read(self._errors, AT_ONCE)
        except BlockingIOError:
            return
        if not data:
            self._close_errors()
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        if len(self._pending) > LONGEST_LINE:
            lines, self._pending = [*lines, self._pending], b""
        for line in lines:
            self._tell(line)

    def _tell(self, line: bytes) -> None:
        self._lines += 1
        if self._lines <= MOST_LINES:
            self._log(line[:LONGEST_LINE].decode(errors="backslashreplace"))

    def _close_errors(self) -> None:
        if self._errors is not None:
            self._loop.remove_reader(self._errors)
            with contextlib.suppress(BlockingIOError):  # what it has started may write for ever
                self._pending += os.read(self._errors, AT_ONCE)
            for line in self._pending.splitlines():
                self._tell(line)
            os.close(self._errors)
            self._errors = None
            if self._lines > MOST_LINES:
                self._log(f"({self._lines - MOST_LINES} more lines)")


def start(
    executable: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    descriptors: Mapping[int, int],
    directory: str,
    stderr: str,
    log: Callable[[str], None],
) -> Program:
    """Start a program; `descriptors` says which of ours become which of its own."""
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_DUP2, ours, its) for its, ours in descriptors.items()
    ]
    reader = writer = None
    if stderr == "client":
        actions.append((os.POSIX_SPAWN_DUP2, descriptors[1], 2))
    elif stderr == "log":
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reader, False)
        actions.append((os.POSIX_SPAWN_DUP2, writer, 2))
    else:
        actions.append((os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0))
    pid = kept = None
    try:
        kept = os.dup(descriptors[0])  # what the program is waited with is to be found then, too
        if directory != "/":
            os.chdir(directory)
        pid = os.posix_spawn(
            executable, list(argv), dict(env),
            file_actions=actions, setsid=True, setsigmask=[], setsigdef=ALL_SIGNALS,
        )  # fmt: skip
        os.close(kept)
        kept = None
        return Program(pid, reader, log)
    except OSError:
        if pid is not None:  # another thread has taken the descriptor
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if reader is not None:
            os.close(reader)
        raise
    finally:
        if directory != "/":
            os.chdir("/")
        for descriptor in (writer, kept):
            if descriptor is not None:
                os.close(descriptor)


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
