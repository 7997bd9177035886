"""Shows the master where a worker's loop is, even while it is blocked: memory and two sockets.

Made by the master for each worker, before the fork. The worker writes the time by which its loop
turns next, and faulthandler writes the stack. The master reads both, and trusts them only as far as
this worker is concerned. Raises OSError where no descriptor is free for the sockets.
"""

from __future__ import annotations

import os
import socket

from superd.observe.stacks import MAX_STACK_SIZE, Stack, stack_of


class Lifeline:
    """Both ends belong to the worker, which itself reports a blocked loop once the loop turns
    again; the master reads only the stack of a worker that does not recover. Sockets and not a
    pipe: a worker could make the reading end of a pipe block for the master as well, while of a
    socket the master decides at each call whether to block.

    `due` is the cell that Scoreboard.due returns. `reader` is the descriptor of a worker that is
    running already.
    """

    def __init__(self, due: memoryview, reader: int | None = None) -> None:
        self._due = due
        if reader is not None:
            self.reader, self.writer = reader, -1
            return
        due[0] = 0
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.reader, self.writer = ours.detach(), theirs.detach()

    @property
    def ends(self) -> tuple[int, int]:
        """The descriptors of the reading and the writing socket; -1 for one that is closed."""
        return self.reader, self.writer

    def expect(self, due: float) -> None:
        """Set the time by which the loop turns next, in seconds of the monotonic clock."""
        self._due[0] = int(due * 1e9)

    def lateness(self, now: float) -> float:
        """Return how many seconds the loop is overdue; 0 before its first turn."""
        due = self._due[0]
        return max(0.0, now - due / 1e9) if due else 0.0

    def stack(self) -> Stack:
        """Return the last stack that was written since the last call."""
        reader = socket.socket(fileno=self.reader)
        try:
            written = reader.recv(MAX_STACK_SIZE, socket.MSG_DONTWAIT)
        except OSError:  # usually nothing was written
            written = b""
        finally:
            reader.detach()
        return stack_of(written)

    def close_writer(self) -> None:
        """Close the writing socket in the master: only the worker writes."""
        os.close(self.writer)
        self.writer = -1

    def close(self) -> None:
        for end in self.ends:
            if end >= 0:
                os.close(end)
