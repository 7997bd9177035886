"""A connection whose blocking handler runs elsewhere: what the worker keeps of it meanwhile.

Runs in the worker, on the loop. Books it, bounds its time, and closes the socket when the handler
has ended, however that was. Never raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable

from superd.net.closing import reset_on_close
from superd.net.timeouts import NO_TIMEOUT
from superd.observe.connections import End
from superd.observe.records import Record
from superd.plugin.service import Unavailable
from superd.worker.blocking.connection import Account, By, Caller, Cell
from superd.worker.serve.session import SLOTS, Session, count_failure
from superd.worker.serve.takeover import bytes_of

GRACE = 0.5  # seconds that a handler has after its connection was cut; the context ends later
PAUSE = 1.0  # seconds until it is tried again to start a thread or process

ENDS = {By.CLIENT: End.CLIENT, By.RESET: End.RESET}


class Executor(ABC):
    """Those who run the blocking handlers of one service: threads, or processes."""

    @property
    @abstractmethod
    def is_full(self) -> bool:
        """Whether nobody is there to serve one more, so that who comes is to wait."""

    def start(self) -> None:  # noqa: B027  threads and forks have nothing to do
        """Get ready."""

    @abstractmethod
    def serve(self, session: BlockingSession) -> Callable[[], None]:
        """Have the handler of a connection run, and return what ends it by force.

        Tells the session by `ended` or `died`. Raises OSError or RuntimeError where nobody can.
        """

    def end_all(self) -> None:  # noqa: B027  nobody can end a thread
        """End by force whoever still serves, as the worker ends."""


class BlockingSession(Session):
    """One such connection. `tally` is what the handler's talk counts in."""

    __slots__ = (*SLOTS, "_end_by_force", "_timer", "sock", "tally")

    sock: socket.socket | None
    tally: memoryview
    _end_by_force: Callable[[], None] | None
    _timer: asyncio.TimerHandle | None

    def give(self, sock: socket.socket, executor: Executor) -> None:
        """Have the executor serve the connection."""
        self.sock = sock
        self._end_by_force = self._timer = None
        try:
            sock.setblocking(True)  # one that was passed on is not
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, NO_TIMEOUT)
            self._end_by_force = executor.serve(self)
        except (OSError, RuntimeError) as error:
            self.contain(Unavailable(f"nobody can serve it: {error}", PAUSE))
            self.leave()

    @property
    def caller(self) -> Caller:
        """Who it is, for the handler's side."""
        return Caller(self.id, self.transport_kind.value, self.sockaddr)

    def raw_socket(self) -> socket.socket | None:
        return self.sock

    @property
    def is_lost(self) -> bool:
        return self.sock is None

    def progress(self) -> tuple[int, int]:
        self._count()
        return self.received, self.sent

    def _count(self) -> None:
        self.received, self.sent = self.tally[Cell.RECEIVED], self.tally[Cell.SENT]
        if self.tally[Cell.RAW] and self.sock is not None:
            self.received, self.sent = bytes_of(self.sock) or (self.received, self.sent)

    def ended(self, account: Account) -> None:
        """The handler has returned or raised."""
        self._count()
        self.outcome = account.outcome
        if account.failure is not None:
            self._failed(account.failure, account.kind)
        elif account.unavailable:
            self.contain(Unavailable(account.unavailable, account.pause))
        else:
            self.end = self.end or ENDS.get(By(self.tally[Cell.ENDED]))
            self.finish()
        self._over()

    def died(self, how: str) -> None:
        """Who ran the handler has gone with it."""
        self._count()
        self.outcome = how
        if self.end is None:
            text = f"plugin {self.worker_service.plugin.name} failed: its process {how}"
            peer = self.peer.endpoint
            self._failed(Record("error", text, self.service, self.id, peer), how)
        self.abort()
        self._over()

    def _failed(self, record: Record, kind: str) -> None:
        self.end = self.end or End.ERROR
        count_failure(self.context, self.worker_service, record, kind)
        self.abort()

    def _over(self) -> None:
        self._end_by_force = None
        if self._timer is not None:
            self._timer.cancel()
        self.leave()

    def finish(self) -> None:
        sock, self.sock = self.sock, None
        if sock is not None and sock.fileno() >= 0:
            self.linger(sock)

    def abort(self) -> None:
        sock, self.sock = self.sock, None
        if sock is not None and sock.fileno() >= 0:
            reset_on_close(sock)
            sock.close()

    def expire(self, end: End) -> None:
        """Cut the connection, which the handler sees; one that does not end is ended."""
        if self._timer is None:
            self.end = self.end or end
            if self.sock is not None:
                with contextlib.suppress(OSError):
                    self.sock.shutdown(socket.SHUT_RDWR)
            self._timer = self.context.loop.call_later(GRACE, self._force)

    def _force(self) -> None:
        if self._end_by_force is not None:
            self._end_by_force()
