"""Plays the service manager: passes sockets as LISTEN_FDS and keeps those that superd stores.

Runs in the test's process. The wrapper runs in the process that becomes superd.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.harness import EVENT_TIMEOUT, Superd

# moves the descriptors to 3 and up, as sd_listen_fds(3) expects, and executes the command
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
    """Launch superd with these descriptors; LISTEN_PID is `pid`, or superd's own pid."""
    numbers = ",".join(map(str, descriptors))
    wrapper = (sys.executable, "-c", WRAPPER, numbers, ":".join(names), pid)
    return superd.launch(*wrapper, pass_fds=descriptors)


class NotifySocket:
    """The service manager's socket: the messages of superd, and the sockets that it stored."""

    def __init__(self, address: Path | str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(EVENT_TIMEOUT)
        name = str(address)
        self.socket.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        self.stored: list[tuple[str, int]] = []
        self.messages: list[dict[str, str]] = []

    def next(self) -> dict[str, str]:
        """Receive one message, and store or release what it asks for."""
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
        """Close the stored sockets of one name, or all."""
        for stored in [one for one in self.stored if name in (None, one[0])]:
            self.stored.remove(stored)
            os.close(stored[1])

    def wait_for(self, key: str) -> dict[str, str]:
        """Return the first message that has a key."""
        while key not in (message := self.next()):
            pass
        return message

    def receive_pending(self) -> None:
        """Receive every message that was sent so far."""
        while select.select([self.socket], [], [], 0)[0]:
            self.next()

    def names(self) -> list[str]:
        """Return the names of all stored sockets."""
        self.receive_pending()
        return sorted(name for name, _ in self.stored)

    def pass_on(self, superd: Superd) -> Superd:
        """Start superd with all stored sockets."""
        names = [name for name, _ in self.stored]
        return launch_with_sockets(superd, [number for _, number in self.stored], names)

    def close(self) -> None:
        self.release()
        self.socket.close()
