"""What a worker shows of its loop, even while that stands still: memory and two sockets.

Made by the master for each worker, before the fork. The worker writes when its loop ought to turn
next, and faulthandler where it stands; the master reads, and believes it as far as this worker is
concerned. Raises OSError where no descriptor is left for them.
"""

from __future__ import annotations

import os
import socket

from superd.observe.stacks import LARGEST, Stack, stack_of


class Lifeline:
    """The worker has both ends, since it tells of its own standstills once they are over; the
    master reads only of a worker that does not come round. They are no pipe, since a worker could
    make the reading end block for the master, too; of a socket the master says how it reads.

    `due` is the cell that Scoreboard.due gives. `reader` is that of a worker that lives already.
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
        """The descriptors."""
        return self.reader, self.writer

    def expect(self, due: float) -> None:
        """Say when the loop turns next, by the monotonic clock."""
        self._due[0] = int(due * 1e9)

    def lateness(self, now: float) -> float:
        """Return for how many seconds the loop ought to have turned; 0 before its first turn."""
        due = self._due[0]
        return max(0.0, now - due / 1e9) if due else 0.0

    def stack(self) -> Stack:
        """Take what was written since the last time."""
        reader = socket.socket(fileno=self.reader)
        try:
            written = reader.recv(LARGEST, socket.MSG_DONTWAIT)
        except OSError:  # nothing, for the most part
            written = b""
        finally:
            reader.detach()
        return stack_of(written)

    def let_go_of_writer(self) -> None:
        """Leave writing to the worker."""
        os.close(self.writer)
        self.writer = -1

    def close(self) -> None:
        for end in self.ends:
            if end >= 0:
                os.close(end)
