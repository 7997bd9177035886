"""A connection whose blocking handler runs in a thread or in another process.

Runs in the worker, on the loop. Accounts for the connection, applies its time-outs, and closes the
socket after the handler has ended, however it did. Never raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable

from superd.net.closing import reset_on_close
from superd.net.receive_timeout import NO_TIMEOUT
from superd.observe.connections import End
from superd.observe.records import Record
from superd.plugin.service import Unavailable
from superd.worker.blocking.connection import ClientInfo, EndedBy, HandlerResult, TallyCell
from superd.worker.serve.session import SLOTS, Session, count_failure
from superd.worker.serve.takeover import bytes_of

HANDLER_STOP_TIMEOUT = 0.5  # seconds from cutting a connection to killing its handler
START_RETRY_INTERVAL = 1.0  # seconds after a thread or process could not be started

END_BY_SIDE = {EndedBy.CLIENT: End.CLIENT, EndedBy.RESET: End.RESET}


class Executor(ABC):
    """Runs the blocking handlers of one service, in threads or in processes."""

    @property
    @abstractmethod
    def is_full(self) -> bool:
        """Whether it can run no other handler, so that pending connections have to wait."""

    def start(self) -> None:  # noqa: B027  only prefork needs it
        """Start the processes that wait for connections, before the worker accepts."""

    def renew(self) -> None:  # noqa: B027  only prefork has processes that wait
        """Replace processes that have copies of files that were reopened, once they are idle."""

    @abstractmethod
    def serve(self, session: BlockingSession) -> Callable[[], None]:
        """Run the handler of a connection; return a function that kills it.

        Calls `ended` or `died` of the session. Raises OSError or RuntimeError where no thread or
        process can be started.
        """

    def kill_all(self) -> None:  # noqa: B027  a thread cannot be killed
        """Kill the handlers that still run, as the worker ends."""


class BlockingSession(Session):
    """One such connection. `tally` is what the handler's connection counts in, by TallyCell."""

    __slots__ = (*SLOTS, "_kill", "_timer", "sock", "tally")

    sock: socket.socket | None
    tally: memoryview
    _kill: Callable[[], None] | None
    _timer: asyncio.TimerHandle | None

    def start(self, sock: socket.socket, executor: Executor) -> None:
        """Have the executor run the handler."""
        self.sock = sock
        self._kill = self._timer = None
        try:
            sock.setblocking(True)  # one that tcpmux passed on does not block
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, NO_TIMEOUT)
            self._kill = executor.serve(self)
        except (OSError, RuntimeError) as error:
            text = f"its handler cannot be started: {error}"
            self.contain(Unavailable(text, START_RETRY_INTERVAL))
            self.leave()

    @property
    def client(self) -> ClientInfo:
        """The client, as the handler's side needs it."""
        return ClientInfo(self.id, self.transport_kind.value, self.sockaddr)

    def raw_socket(self) -> socket.socket | None:
        return self.sock

    @property
    def is_lost(self) -> bool:
        return self.sock is None

    def progress(self) -> tuple[int, int]:
        self._count()
        return self.received, self.sent

    def _count(self) -> None:
        self.received, self.sent = self.tally[TallyCell.RECEIVED], self.tally[TallyCell.SENT]
        if self.tally[TallyCell.RAW] and self.sock is not None:
            self.received, self.sent = bytes_of(self.sock) or (self.received, self.sent)

    def ended(self, result: HandlerResult) -> None:
        """End the session after its handler has returned or raised."""
        self._count()
        self.outcome = result.outcome
        if result.failure is not None:
            self._failed(result.failure, result.kind)
        elif result.unavailable:
            self.contain(Unavailable(result.unavailable, result.pause))
        else:
            self.end = self.end or END_BY_SIDE.get(EndedBy(self.tally[TallyCell.ENDED]))
            self.finish()
        self._close()

    def died(self, how: str) -> None:
        """End the session after the process or thread of its handler was lost."""
        self._count()
        self.outcome = how
        if self.end is None:
            text = f"plugin {self.worker_service.plugin.name} failed: its process {how}"
            peer = self.peer.endpoint
            self._failed(Record("error", text, self.service, self.id, peer), how)
        self.abort()
        self._close()

    def _failed(self, record: Record, kind: str) -> None:
        self.end = self.end or End.ERROR
        count_failure(self.context, self.worker_service, record, kind)
        self.abort()

    def _close(self) -> None:
        self._kill = None
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
        """Cut the connection, which the handler sees; kill a handler that does not end."""
        if self._timer is None:
            self.end = self.end or end
            if self.sock is not None:
                with contextlib.suppress(OSError):
                    self.sock.shutdown(socket.SHUT_RDWR)
            self._timer = self.context.loop.call_later(HANDLER_STOP_TIMEOUT, self._kill_handler)

    def _kill_handler(self) -> None:
        if self._kill is not None:
            self._kill()
