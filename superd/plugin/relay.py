"""What superd and a plugin are to each other where the plugin carries the bytes itself.

Used in the worker, on the loop. There is no coroutine: the plugin has a socket, or is handed
datagrams, and calls back when it is done. superd books and records the client, and has it cut off
when its time is over. Nothing here waits or blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from superd.observe.connections import End
from superd.plugin.connection import Client


class Relay(ABC):
    """What a plugin has for one client, whose bytes `received` and `sent` count as they pass."""

    __slots__ = ()

    @property
    @abstractmethod
    def received(self) -> int: ...

    @property
    @abstractmethod
    def sent(self) -> int: ...

    @abstractmethod
    def cut(self) -> None:
        """Close everything at once: a time-out is over, or superd stops. May be called twice."""


class DatagramRelay(Relay):
    """The same for the datagrams of one source."""

    __slots__ = ()

    @abstractmethod
    def take(self, data: bytes) -> None:
        """Go on with a datagram of the client."""


class Relayed(Client):
    """A client that a plugin has a relay for."""

    __slots__ = ()

    @abstractmethod
    def reached(self, target: str, seconds: float) -> None:
        """Say for the record who serves this client, and how long it took to connect."""

    @abstractmethod
    def ended(self, end: End) -> None:
        """Say that it is over, and that the client's socket has been closed."""

    @abstractmethod
    def failed(self, error: BaseException) -> None:
        """Have a mistake of the plugin reported, and its relay cut."""


class RelayedDatagrams(Relayed):
    """A client of udp or unixgram: whoever sends from one address to one of ours."""

    __slots__ = ()

    @abstractmethod
    def send(self, data: bytes | memoryview) -> None:
        """Send a datagram to the client, from where it was asked; lost where that cannot be."""


class Polled(Protocol):
    """Who waits for a socket."""

    def ready(self, events: int) -> None:
        """Go on, by what epoll(7) says; with input: until there is no more, or `again`."""

    def failed(self, error: BaseException) -> None:
        """Take note of what `ready` has raised."""


class Poller(ABC):
    """Has those who wait for a socket go on when it is ready, edge-triggered (epoll(7)): for input,
    output, the end of input, and a byte out of band. All services of a worker share it.
    """

    @abstractmethod
    def add(self, descriptor: int, who: Polled) -> None:
        """Wait for a socket. Raises OSError where the system has no room for it."""

    @abstractmethod
    def hand_over(self, descriptor: int, who: Polled) -> None:
        """Have somebody else wait for a socket."""

    @abstractmethod
    def forget(self, descriptor: int) -> None:
        """Wait no more for a socket that is about to be closed; that takes it out of the epoll."""

    @abstractmethod
    def again(self, descriptor: int, who: Polled) -> None:
        """Have it go on with its input when the others have had their turn."""
