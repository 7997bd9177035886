"""The accept loop: takes what waits on one listener, a bounded number at a time.

Runs in the worker, on the loop. Polls its listener only while a connection could be taken, and
never closes it. Never trusts the listener's O_NONBLOCK: SO_RCVTIMEO bounds an accept that another
process made blocking. Never raises.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from superd.admission.scoreboard import Count
from superd.observe.records import Record
from superd.worker.serving import Serving

if TYPE_CHECKING:
    from superd.worker.engine import Engine

BATCH = 64  # connections per wake-up: the others' turn comes before a flood is over

# accept(2): these concern the one connection that was to be accepted, or pass at once
NEXT = frozenset(
    (
        errno.ECONNABORTED, errno.EPROTO, errno.EINTR, errno.EPERM, errno.ENETDOWN,
        errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH,
        errno.EOPNOTSUPP, errno.ENETUNREACH, errno.ETIMEDOUT,
    )
)  # fmt: skip
# All others, EMFILE and ENFILE foremost: nothing can be taken for now, the backlog waits
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 0.25

_ACCEPTED = int(Count.ACCEPTED)


class Accepted(socket.socket):
    """A socket whose family and type are plain numbers, as looking up enumerations takes time."""

    __slots__ = ()

    family = socket.SocketType.family  # type: ignore[assignment]
    type = socket.SocketType.type  # type: ignore[assignment]


class Acceptor:
    """Accepts on one listener and hands each, a socket of the type `make`, to `dispatch`."""

    def __init__(
        self,
        engine: Engine,
        serving: Serving,
        listener: socket.socket,
        dispatch: Callable[[Any, Any], None],
        make: type[socket.SocketType],
    ) -> None:
        self.engine = engine
        self.serving = serving
        self.listener = listener
        self.dispatch = dispatch
        self.make = make
        self.numbers = (int(listener.family), int(listener.type), listener.proto)
        self.pause = FIRST_PAUSE
        self.stopped = False

    def start(self) -> None:
        """Poll the listener."""
        if not self.stopped:
            self.engine.loop.add_reader(self.listener, self.accept)

    def stop(self) -> None:
        """Take what has been waiting, then poll no more and let go of the listener."""
        if not self.stopped:
            self.stopped = True
            self.engine.loop.remove_reader(self.listener)
            for _ in range(0, self.serving.entry.backlog, BATCH):
                if not self.accept():
                    break
            self.listener.close()

    def accept(self) -> bool:
        """Accept until none waits, but no more than BATCH; tell whether more may wait."""
        # what socket.accept does, without its three enumerations: a tenth of a short connection
        accept: Callable[[], tuple[int, Any]] = self.listener._accept  # type: ignore[attr-defined]
        dispatch, make, numbers = self.dispatch, self.make, self.numbers
        counts = self.serving.counts
        for _ in range(BATCH):
            try:
                descriptor, sockaddr = accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno not in NEXT:
                    self._pause(error)
                    return False
                self._report(error, "a connection was lost before it was accepted")
                continue
            self.pause = FIRST_PAUSE
            counts[_ACCEPTED] += 1
            dispatch(make(*numbers, descriptor), sockaddr)
        return True

    def _pause(self, error: OSError) -> None:
        """Leave those who wait in the backlog for a while; polling would only spin."""
        self._report(error, "cannot accept, clients wait")
        self.engine.check_listeners()
        if error.errno == errno.EMFILE:
            self.engine.check_descriptors()
        if self.stopped:
            return
        self.engine.loop.remove_reader(self.listener)
        self.engine.loop.call_later(self.pause, self.start)
        self.pause = min(self.pause * 2, LONGEST_PAUSE)

    def _report(self, error: OSError, what: str) -> None:
        name = errno.errorcode.get(error.errno or 0, "")
        message = f"{what}: {os.strerror(error.errno or 0)} ({name})"
        record = Record("warning", message, service=self.serving.name)
        self.engine.gate.report((self.serving.name, name), record)
