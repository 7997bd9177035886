"""One run of a program: start it with a single vfork and exec, wait for it, and end it if needed.

A program has a session of its own, so that its whole process group can be signalled; no descriptor
but 0, 1 and 2; and the default signal handlers. Raises OSError if it cannot be started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence

DESCRIPTORS_TO_START = 3  # both ends of a pipe, and the pidfd
KILL_DELAY = 0.7  # seconds between TERM and KILL
PIPE_BYTES = 65536  # the capacity of a pipe (pipe(7))
MAX_LINE_BYTES = 2000  # of standard error; longer lines are split in the log
MAX_LOGGED_LINES = 1000  # of one program's standard error; further lines are counted

ALL_SIGNALS = [number for number in signal.valid_signals() if number not in (9, 19)]


class Program:
    """A running program.

    The caller awaits `ended`, which also ends the whole process group. Then `outcome` has the exit
    status or signal, and the CPU time.
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
        """Wait for the program to end; end it after `max_run_time` seconds, or if cancelled."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, _settle, done)
        why = "ended by superd; "
        try:
            if not max_run_time:
                await asyncio.shield(done)  # takes less time than wait()
            else:
                await asyncio.wait([done], timeout=max_run_time)
            why = "max-run-time is over; "
        finally:
            if done.done():
                why = ""
            await self._ensure_ended(done)
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._close_errors()
            self.outcome = why + self._reap()

    async def _ensure_ended(self, done: asyncio.Future[None]) -> None:
        """End the program if it still runs, even if cancelled meanwhile, any number of times."""
        if done.done():
            return
        self.signal(signal.SIGTERM)
        kill_at = self._loop.time() + KILL_DELAY
        while not done.done() and (left := kill_at - self._loop.time()) > 0:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([done], timeout=left)
        self.signal(signal.SIGKILL)  # also other processes of its group
        while not done.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([done])

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _reap(self) -> str:
        try:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        except ChildProcessError:
            return "status unknown"
        if not pid:
            return "still running"
        code = os.waitstatus_to_exitcode(status)
        how = f"status {code}" if code >= 0 else f"signal {-code}"
        return f"{how}, {usage.ru_utime + usage.ru_stime:.3f} s of CPU"

    def _read_errors(self) -> None:
        """Log the standard error of the program, line by line."""
        assert self._errors is not None
        try:
            data = os.read(self._errors, PIPE_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._close_errors()
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        if len(self._pending) > MAX_LINE_BYTES:
            lines, self._pending = [*lines, self._pending], b""
        for line in lines:
            self._log_line(line)

    def _log_line(self, line: bytes) -> None:
        self._lines += 1
        if self._lines <= MAX_LOGGED_LINES:
            self._log(line[:MAX_LINE_BYTES].decode(errors="backslashreplace"))

    def _close_errors(self) -> None:
        if self._errors is not None:
            self._loop.remove_reader(self._errors)
            with contextlib.suppress(BlockingIOError):  # its children may still have the pipe
                self._pending += os.read(self._errors, PIPE_BYTES)
            for line in self._pending.splitlines():
                self._log_line(line)
            os.close(self._errors)
            self._errors = None
            if self._lines > MAX_LOGGED_LINES:
                self._log(f"({self._lines - MAX_LOGGED_LINES} more lines)")


def start(
    executable: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    descriptors: Mapping[int, int],
    directory: str,
    stderr: str,
    log: Callable[[str], None],
) -> Program:
    """Start a program. `descriptors` maps its descriptors to ours. Raises OSError."""
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
    pid = reserved = None
    try:
        reserved = os.dup(descriptors[0])  # reserves a descriptor for the pidfd
        if directory != "/":
            os.chdir(directory)
        pid = os.posix_spawn(
            executable, list(argv), dict(env),
            file_actions=actions, setsid=True, setsigmask=[], setsigdef=ALL_SIGNALS,
        )  # fmt: skip
        os.close(reserved)
        reserved = None
        return Program(pid, reader, log)
    except OSError:
        if pid is not None:  # another thread has taken the reserved descriptor
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if reader is not None:
            os.close(reader)
        raise
    finally:
        if directory != "/":
            os.chdir("/")
        for descriptor in (writer, reserved):
            if descriptor is not None:
                os.close(descriptor)


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
