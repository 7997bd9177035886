"""The interface between superd and a plugin that relays bytes itself.

Used in the worker, on the event loop. There is no coroutine: the plugin owns a socket, or receives
datagrams, and calls `ended` when it is done. superd counts and records the client, and calls `cut`
when a time-out expires. Nothing here blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from superd.observe.connections import End
from superd.plugin.connection import Client


class Relay(ABC):
    """A plugin's relay for one client; `received` and `sent` count the client's bytes."""

    __slots__ = ()

    @property
    @abstractmethod
    def received(self) -> int: ...

    @property
    @abstractmethod
    def sent(self) -> int: ...

    @abstractmethod
    def cut(self) -> None:
        """Close all sockets immediately, for a time-out or a stop. May be called twice."""


class DatagramRelay(Relay):
    """A relay for the datagrams of one source."""

    __slots__ = ()

    @abstractmethod
    def take(self, data: bytes) -> None:
        """Relay a datagram of the client."""


class Relayed(Client):
    """A client whose bytes a plugin relays."""

    __slots__ = ()

    @abstractmethod
    def reached(self, target: str, seconds: float) -> None:
        """Set the target that serves this client, and the time to connect to it, for the record."""

    @abstractmethod
    def ended(self, end: End) -> None:
        """Report the end of the relay; the client's socket must be closed already."""

    @abstractmethod
    def failed(self, error: BaseException) -> None:
        """Report an exception of the plugin; superd logs it and cuts the relay."""


class RelayedDatagrams(Relayed):
    """A client of udp or unixgram: one source address that sends to one local address."""

    __slots__ = ()

    @abstractmethod
    def send(self, data: bytes | memoryview) -> None:
        """Send a datagram to the client from the local address that it used; errors drop it."""


class Polled(Protocol):
    """The owner of a polled socket."""

    def ready(self, events: int) -> None:
        """Handle the events of epoll(7). Read until the socket is empty, or call `again`."""

    def failed(self, error: BaseException) -> None:
        """Handle an exception of `ready`."""


class Poller(ABC):
    """Calls the owners of sockets when these are ready, edge-triggered (epoll(7)): for input,
    output, the end of input, and out-of-band data. All services of a worker share it.
    """

    @abstractmethod
    def add(self, descriptor: int, owner: Polled) -> None:
        """Poll a socket. Raises OSError at the system's limit of watches."""

    @abstractmethod
    def hand_over(self, descriptor: int, owner: Polled) -> None:
        """Change the owner of a polled socket."""

    @abstractmethod
    def forget(self, descriptor: int) -> None:
        """Stop polling a socket before it is closed; closing removes it from the epoll."""

    @abstractmethod
    def again(self, descriptor: int, owner: Polled) -> None:
        """Call the owner again for input, after the other sockets have had their turn."""
