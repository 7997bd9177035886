"""The master's record of a worker that does not run: a test holds the other end of its channel."""

from __future__ import annotations

import socket

from superd.master.workers.child import Child
from superd.worker.lifeline import Lifeline


def child_of(channel: socket.socket, *services: str, pid: int = 123, ready: bool = False) -> Child:
    """Return the record of a worker with this channel and these services."""
    lifeline = Lifeline(memoryview(bytearray(8)).cast("Q"), reader=-1)
    return Child(pid, channel, lifeline, 0.0, frozenset(services), ready=ready)
