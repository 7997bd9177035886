"""Connects to a destination: looks its name up, and tries its addresses.

Runs in the command line. Sends no data. Tries the next address once one has failed, and in parallel
if one has not answered for a while (RFC 8305, happy eyeballs). Raises UsageError for an invalid
destination, Unreachable.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from superd.config.durations import parse_duration
from superd.errors import SuperdError, UsageError, reason, shown
from superd.net.addresses import Address, Transport, unmapped
from superd.net.destinations import TRANSPORTS, Destination, parse_destination
from superd.net.happy_eyeballs import Candidates

T = TypeVar("T")


class Unreachable(SuperdError):
    """No address of the destination could be connected to."""


def parse(text: str, *, port: int | None = None) -> Destination:
    """Return the destination that a user typed; with `port`, a host alone will do."""
    try:
        return parse_destination(
            _with_port(text, port) if port is not None else text,
            (*TRANSPORTS, Transport.UNIXPACKET),
        )
    except ValueError as error:
        raise UsageError(f"{text}: {error}") from None


def _with_port(text: str, port: int) -> str:
    scheme, separator, rest = text.rpartition("://")
    bare = rest[1:-1] if rest.startswith("[") and rest.endswith("]") else rest
    try:
        ipaddress.IPv6Address(bare)
    except ValueError:
        return text if ":" in rest or rest.startswith(("/", "@")) else f"{text}:{port}"
    return f"{scheme}{separator}[{bare}]:{port}"


def duration(option: str, text: str | None, default: float | None = None) -> float | None:
    """Return the value of a time option in seconds; None for no limit."""
    if text is None:
        return default
    try:
        return parse_duration(0 if text == "0" else text) or None
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


class Deadline:
    """A point in time after which an operation gives up; None: never."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float | None:
        """Seconds until then, 0 once it has passed."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    @property
    def left_to_wait(self) -> float | None:
        """The same for a socket timeout, where 0 would mean not to block at all."""
        return None if self.left is None else max(self.left, 0.001)

    @property
    def is_over(self) -> bool:
        return self.left == 0

    def __str__(self) -> str:
        return f"{self.seconds:g} s"


def addresses(
    target: Destination, deadline: Deadline, *, datagrams: bool, source: str = ""
) -> list[Address]:
    """Return all addresses of a destination, best first; only those of the source's family."""
    if not target.is_name:
        found = [target.address(target.host, datagrams=datagrams)]
    else:
        found = [
            target.address(host, datagrams=datagrams) for host in _look_up(target.host, deadline)
        ]
    if source:
        version = socket.AF_INET6 if ":" in source else socket.AF_INET
        found = [address for address in found if address.family == version]
        if not found:
            raise Unreachable(
                f"cannot connect to {target} from {source}: it has no address of this family"
            )
    return found


def _look_up(name: str, deadline: Deadline) -> list[str]:
    def ask() -> list[str]:
        entries = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(_host(entry[4]) for entry in entries))

    try:
        return bounded(ask, deadline)
    except TimeoutError:
        raise Unreachable(f"no address for {name} in {deadline}") from None
    except socket.gaierror as error:
        raise Unreachable(f"no host {name}: {error.strerror}") from None
    except UnicodeError:
        raise UsageError(f"{shown(name)} is no host name") from None


def _host(sockaddr: tuple[object, ...]) -> str:
    host = unmapped(str(sockaddr[0]))
    scope = sockaddr[3] if len(sockaddr) > 3 else 0
    if isinstance(scope, int) and scope and "%" not in host:
        return f"{host}%{socket.if_indextoname(scope)}"
    return host


def bounded(call: Callable[[], T], deadline: Deadline) -> T:
    """Run a call that cannot be interrupted in a thread, and abandon it at the deadline."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001  raised in the calling thread below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(deadline.left)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]


def connect(
    target: Destination, deadline: Deadline, source: str = ""
) -> tuple[socket.socket, Address]:
    """Return a non-blocking connection, and the address that it is connected to."""
    candidates = Candidates(addresses(target, deadline, datagrams=False, source=source))
    attempts = _Attempts(target, source)
    try:
        while candidates and not attempts.won:
            attempts.start(candidates.popleft(), deadline)
            candidates.attempted()
            if attempts.wait(candidates.due_at if candidates else None, deadline):
                break
        return attempts.result()
    finally:
        attempts.close()


class _Attempts:
    """Connections that are being made to addresses of one destination."""

    def __init__(self, target: Destination, source: str) -> None:
        self.target = target
        self.source = source
        self.pending: dict[int, tuple[socket.socket, Address]] = {}
        self.won: tuple[socket.socket, Address] | None = None
        self.failures: list[tuple[Address, str]] = []
        self._poll = select.poll()

    def start(self, address: Address, deadline: Deadline) -> None:
        connection = socket.socket(address.family, address.transport.socket_type)
        self.pending[connection.fileno()] = (connection, address)
        try:
            if self.source:
                connection.bind((self.source, 0))
            if address.transport.is_unix:
                _connect_unix(connection, address, deadline)
                connection.setblocking(False)
                self._settle(connection.fileno(), 0)
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setblocking(False)
            number = connection.connect_ex(address.sockaddr)
        except OSError as error:
            number = error.errno or errno.EIO
        if number == errno.EINPROGRESS:
            self._poll.register(connection.fileno(), select.POLLOUT)
        else:
            self._settle(connection.fileno(), number)

    def wait(self, until: float | None, deadline: Deadline) -> bool:
        """Wait until one succeeds, all have failed or the monotonic clock says `until`.

        Return whether to try no further address: one has succeeded, or the deadline has passed.
        """
        while self.pending and not self.won:
            left = [] if deadline.left is None else [deadline.left]
            if until is not None:
                left.append(max(0.0, until - time.monotonic()))
            for descriptor, _ in self._poll.poll(min(left) * 1000 if left else None):
                self._poll.unregister(descriptor)
                connection = self.pending[descriptor][0]
                self._settle(descriptor, connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            if deadline.is_over:
                self._give_up(f"no connection in {deadline}")
                return True
            if until is not None and time.monotonic() >= until:
                break
        return self.won is not None

    def _settle(self, descriptor: int, number: int) -> None:
        connection, address = self.pending.pop(descriptor)
        if number or self.won:
            connection.close()
            if number:
                self.failures.append((address, os.strerror(number)))
        else:
            self.won = (connection, address)

    def _give_up(self, why: str) -> None:
        for connection, address in self.pending.values():
            connection.close()
            self.failures.append((address, why))
        self.pending.clear()

    def result(self) -> tuple[socket.socket, Address]:
        if self.won is None:
            raise unreachable(self.target, self.failures)
        won, self.won = self.won, None
        return won

    def close(self) -> None:
        self._give_up("")
        if self.won:
            self.won[0].close()


def _connect_unix(connection: socket.socket, address: Address, deadline: Deadline) -> None:
    """Connect with blocking: a non-blocking connect(2) does not wait for room in the backlog."""
    if deadline.left_to_wait is not None:
        whole, part = divmod(deadline.left_to_wait, 1)
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(whole), int(part * 1e6))
        )
    try:
        connection.connect(address.sockaddr)
    except BlockingIOError:
        raise OSError(errno.ETIMEDOUT, "") from None


def unreachable(target: Destination, failures: list[tuple[Address, str]]) -> Unreachable:
    """Return an error with the reason per address, or with one reason that all share."""
    reasons = {why for _, why in failures}
    if len(reasons) == 1:
        why = reasons.pop()
        hosts = ", ".join(address.host for address, _ in failures) if target.is_name else ""
        return Unreachable(f"cannot connect to {target}{f' ({hosts})' if hosts else ''}: {why}")
    each = "; ".join(f"{address.endpoint}: {why}" for address, why in failures)
    return Unreachable(f"cannot connect to {target}: {each}")


def datagram_sockets(
    target: Destination, deadline: Deadline, source: str = ""
) -> Iterator[tuple[socket.socket, Address]]:
    """Yield a socket for each address of a destination; the caller closes it.

    Without a connection, only an answer or a refusal shows whether a service is there.
    """
    failures: list[tuple[Address, str]] = []
    is_any = False
    for address in addresses(target, deadline, datagrams=True, source=source):
        client = socket.socket(address.family, address.transport.socket_type)
        try:
            if address.transport.is_unix:
                client.bind("")  # the kernel chooses an abstract name for the answer
            elif source:
                client.bind((source, 0))
            client.connect(address.sockaddr)
        except OSError as error:
            client.close()
            failures.append((address, reason(error)))
        else:
            is_any = True
            yield client, address
    if not is_any:
        raise unreachable(target, failures)
