"""A supervisor's part: passing sockets on as LISTEN_FDS, and keeping those that superd stores.

Runs in the test's process; the wrapper in the one that becomes superd.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.harness import EVENT_TIMEOUT, Superd

# moves descriptors to 3 and on, as `sd_listen_fds(3)` has it, and becomes what follows
WRAPPER = """
import fcntl, os, sys
numbers, names, pid, *command = sys.argv[1:]
high = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 512) for n in numbers.split(",") if n]
for place, number in enumerate(high):
    os.dup2(number, 3 + place, inheritable=True)
os.closerange(3 + len(high), 1 << 16)
os.environ["LISTEN_PID"] = pid or str(os.getpid())
os.environ["LISTEN_FDS"] = str(len(high))
os.environ["LISTEN_FDNAMES"] = names
os.execvp(command[0], command)
"""


def launch_with_sockets(
    superd: Superd, descriptors: Sequence[int], names: Sequence[str] = (), pid: str = ""
) -> Superd:
    """Launch superd with these descriptors; `pid` is whom they are said to be for."""
    numbers = ",".join(map(str, descriptors))
    wrapper = (sys.executable, "-c", WRAPPER, numbers, ":".join(names), pid)
    return superd.launch(*wrapper, pass_fds=descriptors)


class NotifySocket:
    """The supervisor's socket: what superd tells, datagram by datagram, and what it has stored."""

    def __init__(self, address: Path | str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(EVENT_TIMEOUT)
        name = str(address)
        self.socket.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        self.stored: list[tuple[str, int]] = []
        self.messages: list[dict[str, str]] = []

    def next(self) -> dict[str, str]:
        """Take one message, and do what it says of the store."""
        text, descriptors, *_ = socket.recv_fds(self.socket, 4096, 253)
        message = dict(line.split("=", 1) for line in text.decode().split("\n"))
        if "FDSTORE" in message:
            self.stored += [(message["FDNAME"], number) for number in descriptors]
        else:
            for number in descriptors:  # a barrier
                os.close(number)
        if "FDSTOREREMOVE" in message:
            self.release(message["FDNAME"])
        self.messages.append(message)
        return message

    def release(self, name: str | None = None) -> None:
        """Close what is stored by a name, or all."""
        for stored in [one for one in self.stored if name in (None, one[0])]:
            self.stored.remove(stored)
            os.close(stored[1])

    def wait_for(self, key: str) -> dict[str, str]:
        """Return the first message that has a key."""
        while key not in (told := self.next()):
            pass
        return told

    def receive_pending(self) -> None:
        """Take what has been sent so far."""
        while select.select([self.socket], [], [], 0)[0]:
            self.next()

    def names(self) -> list[str]:
        """Return the names of all that is stored."""
        self.receive_pending()
        return sorted(name for name, _ in self.stored)

    def pass_on(self, superd: Superd) -> Superd:
        """Start superd with all that is stored."""
        names = [name for name, _ in self.stored]
        return launch_with_sockets(superd, [number for _, number in self.stored], names)

    def close(self) -> None:
        self.release()
        self.socket.close()
