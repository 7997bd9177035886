"""The base class of a plugin's service: a name, options, and methods that serve clients.

Used in the worker, and where a configuration is checked. Imports nothing of the server.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NoReturn, Protocol, cast

from pydantic import ConfigDict

from superd.config.model import Service as Entry
from superd.config.section import Section
from superd.net.addresses import Address, Transport
from superd.observe.records import Level
from superd.plugin.connection import Client, Connection
from superd.plugin.relay import Poller


class Options(Section):
    """Options of a plugin: a frozen model whose fields are the keys of `options = {...}`.

    A field `longest_line` is the key `longest-line` in TOML. Its type is a type of TOML, a tuple or
    set of such, or, for a table, another subclass of Options. A string may be a `Literal`, a member
    of an enumeration, a `Path` that is used as written, or an address or network of `ipaddress`.
    `FilePath` and `ReadableFile` are relative to the configuration's directory. `Duration`, `Size`
    and `Rate` are written as in superd's own keys.
    """

    model_config = ConfigDict(defer_build=False)  # built once in the master, for all workers


class Request:
    """A datagram to answer, or a connection, whose `data` is empty.

    `room` is the maximum length of the answer in bytes. For a datagram it is the datagram's own
    length, unless the entry has `amplify = true` or the client has sent to a loopback address. A
    longer answer is dropped and counted.
    """

    __slots__ = ("_local", "_peer", "_transport", "data", "room")

    def __init__(
        self,
        data: bytes,
        room: int,
        transport: Transport,
        peer: Any,
        local: Address | socket.SocketType,
    ) -> None:
        self.data = data
        self.room = room
        self._transport = transport
        self._peer = peer
        self._local = local

    @property
    def peer(self) -> Address:
        """The client's address; computed on demand, since most answers do not depend on it."""
        return Address.from_sockaddr(self._transport, self._peer)

    @property
    def local(self) -> Address:
        """The local address that the client used."""
        if isinstance(self._local, Address):
            return self._local
        return Address.from_sockaddr(self._transport, self._local.getsockname())


class Unavailable(Exception):
    """A plugin cannot serve at the moment: the client's connection is closed, and the text is
    logged without a traceback. The service accepts no connections for `pause` seconds.
    """

    def __init__(self, text: str, pause: float = 0.0) -> None:
        super().__init__(text)
        self.pause = pause


class WrongOption(ValueError):
    """An option conflicts with the rest of the entry; `key` is its name as written in TOML, or that
    of a key of the entry.
    """

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


@dataclass(frozen=True)
class Waiting:
    """Describes a socket with pending input that is given to a plugin: `peer` is the source of the
    first datagram, None for a listening socket. `log(level, text)` writes to superd's log. A
    program that gets the socket needs the variables of `environment`: by them the next superd
    recognises and ends it if this one is killed.
    """

    local: Address
    peer: Address | None
    log: Callable[[Level, str], None]
    environment: Mapping[str, str] = field(default_factory=dict)


# in the environment of a program that gets a listener: the configuration of superd
HANDED_BY = "SUPERD_HANDED_BY"


class _NotServing:
    """The server of a service before it serves: every use raises RuntimeError."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(f"{name}() is available only once the service serves")


class Service:
    """A service that a plugin offers. Its life has these steps:

    1. `__init__(options)` checks and stores the options. It opens no file, so that any user can
       check a configuration. `check(entry)` then checks the options against the rest of the entry.
    2. `prepare()` opens, reads and loads what the service needs, before confinement. The preflight
       runs steps 1 and 2 in a process of its own before any address is bound, so `prepare` may run
       more than once. A file that it opens for appending (mode "a", O_APPEND) is reopened by
       `superd reopen` after a rotation: the new file takes the descriptor of the old one. Other
       files, such as databases, stay as they are.
    3. The worker is confined: it may have changed user and root directory, and imports are sealed.
       `start()` is called on the loop, before any connection is accepted, for timers and tasks.
    4. For each connection or datagram one of these methods runs:
       `respond(request) -> bytes`: superd sends the answer and closes the connection, or answers
       the datagram.
       `async stream(conn)` serves a stream connection.
       `stream(conn)`, not async, serves it with blocking calls, in a thread or a process of its own
       as the entry's `model` says. All of these share what `prepare` opened.
       `protocol(conn) -> asyncio.Protocol` serves it with the least overhead.
       `datagram(request) -> bytes | None` returns the answer to a datagram, or None for no answer.
       `async takeover(sock, conn)` owns the raw, non-blocking socket until it returns. superd then
       delivers what was sent and closes the socket, unless the method has closed or detached it.
       If it starts a program for the client, it calls `conn.given_to(pid)` and waits for its end.
       It is called only while at least `descriptors` file descriptors are free.
       `relay(sock, conn) -> Relay` owns the socket without a coroutine, until it calls
       `conn.ended(end)`. The socket may be in blocking mode, so every call on it needs
       MSG_DONTWAIT; `poller` reports when the socket is ready.
       `relay_datagrams(conn) -> DatagramRelay` does the same for all datagrams of one source, which
       is counted, limited and recorded like a connection.
       `async listener(sock, waiting)` owns the listening or datagram socket, if the entry has
       `wait = true`, or for datagrams if the class has no other method for them. superd does not
       poll the socket until it returns, with how it ended.
       For streams superd uses the first of relay, protocol, async stream, takeover and respond
       that the class has. It uses a blocking stream if the class has no other method, or if the
       entry asks for it. For datagrams it uses the first of relay_datagrams, datagram and respond.
    5. After the worker has drained, remaining tasks are cancelled. They have a second to clean up.
       Then the loop ends, and superd calls `close()`.

    An exception of a method is logged with the connection's id and ends only that connection. If a
    method blocks the loop, its stack is logged; if it does not return, the worker is killed. superd
    uses SIGALRM and its timer for this, so a plugin must not. A task that fails is logged unless
    other code awaits it within a second or two.

    What a plugin or a library prints, logs (`logging`) or warns of (`warnings`) is in superd's log:
    `print` at level "info", standard error at "warning". The line names the service whose code
    runs. What a C library or a program writes to descriptors 1 and 2 is there at level "warning".
    A flood is folded: `self.log`, `conn.log` and `record` are for what must not be lost.
    """

    name: ClassVar[str] = ""
    options_model: ClassVar[type[Options]] = Options
    # modules to import before confinement, because the plugin imports them late
    preload: ClassVar[tuple[str, ...]] = ()
    # free descriptors required before a connection is taken over
    descriptors: ClassVar[int] = 0
    # whether `takeover` gives each connection to a program, which its record names from the start
    runs_programs: ClassVar[bool] = False
    # whether the service calls `look_up` or `name_of`, which need a resolver; `check` may set it
    looks_up = False

    def __init__(self, options: Options) -> None:
        self.options = options

    def prepare(self) -> None:
        """Open files while the whole file system is accessible. Do not keep a directory open: its
        descriptor would be a way out of a jail.
        """

    def preflight(self) -> None:
        """Check for `superd check` that `prepare` would succeed, and change nothing.

        Overridden by a plugin whose `prepare` creates files.
        """
        self.prepare()

    def preflight_as_user(self) -> None:
        """Check what clients will need later, such as a program to run; raise WrongOption.

        Called after `preflight` in a process of its own that has the user, groups and root
        directory of the service's workers. Changes nothing.
        """

    def close(self) -> None:
        """Release what `prepare` opened."""

    def check(self, entry: Entry) -> None:
        """Raise WrongOption if the options conflict with the rest of the entry."""

    @classmethod
    def check_all(cls, services: Mapping[str, Any]) -> Iterator[tuple[str, WrongOption]]:
        """Yield conflicts between the enabled services of this class, each with the name of the
        service to blame. Every service has passed its own `check`.
        """
        yield from ()

    def start(self) -> None:
        """Start timers and tasks that are not part of a connection."""

    def status(self) -> list[dict[str, str | int | float]]:
        """Return rows with equal keys for `superd status`; called at most once a second."""
        return []

    # What superd offers to the service in step 4

    @property
    def entry_name(self) -> str:
        """The name of the service's entry in the configuration."""
        return self._server.name

    def log(self, level: Level, text: str) -> None:
        """Write a line without a connection's id to superd's log; level as in Client.log."""
        self._server.log(level, text)

    def record(
        self, of: Client | Request, text: str, facts: Mapping[str, str] | None = None
    ) -> None:
        """Write a "noted" event to the record of a connection or datagram: a text, and facts by
        name. A name is a lower-case word. Facts that do not fit into a line are dropped. Control
        characters are escaped, so a client cannot forge an event.
        """
        self._server.record(of, text, facts or {})

    def name_of(self, peer: Address, found: Callable[[str], None]) -> None:
        """Call `found` with the name of a client's host, possibly before returning. The name is
        found by a reverse look-up and confirmed by a forward look-up; "" without one. Never blocks.
        """
        self._check_looks_up("name_of")
        self._server.name_of(peer, found)

    def ban(self, peer: Address, seconds: float, reason: str = "") -> None:
        """Ban `peer`, with its netblock as in the entry, from all services for at most a year. Its
        open connections continue. Peers of unix sockets cannot be banned. Do not ban the source of
        a datagram: it may be forged.
        """
        self._server.ban(peer, seconds, reason)

    def look_up(self, host: str, found: Callable[[tuple[str, ...]], None]) -> None:
        """Call `found` with the numeric addresses of a host, the preferred first, possibly before
        returning; with an empty tuple if there are none. Works in a jail. Never blocks.
        """
        self._check_looks_up("look_up")
        self._server.look_up(host, found)

    def distrust(self, host: str) -> None:
        """Note that an address of a host does not work: the next `look_up` asks for its addresses
        again, though their time to live is not over, but at most once in 5 s.
        """
        self._server.distrust(host)

    def _check_looks_up(self, method: str) -> None:
        if not self.looks_up:
            name = type(self).__qualname__
            text = f"{name}.{method}() needs a resolver: set looks_up = True in the class"
            raise RuntimeError(f"{text}, or self.looks_up in check()")

    @property
    def poller(self) -> Poller:
        """The poller that calls relays when their sockets are ready; from step 3."""
        return self._server.poller

    @property
    def drains(self) -> bool:
        """Whether this worker has stopped accepting and waits for its connections to end."""
        return self._server.drains

    async def observe(self, what: Literal["metrics", "readiness"]) -> bytes:
        """Return superd's metrics in Prometheus's format, or the reasons why superd is not ready,
        b"" if it is. Metrics may be a moment old. Raises TimeoutError if the master does not
        answer. For the metrics plugin only.
        """
        return await self._server.observe(what)

    def listens_on(self, transport: Transport, port: int) -> bool:
        """Return whether this superd listens on a port of tcp or udp, on any address."""
        return self._server.listens_on(transport, port)

    def reachable(self) -> tuple[str, ...]:
        """Return the names of the services that listen on `tcpmux://NAME`. For tcpmux only."""
        return self._server.reachable()

    def pass_on(self, conn: Connection, name: str) -> bool:
        """Pass a connection that was taken over to one of these services, which applies its own
        rules, and close its socket here. False if the service has too many pending connections.
        For tcpmux only.
        """
        return self._server.pass_on(conn, name)

    _server: Server = cast("Server", _NotServing())  # replaced by the worker


class Server(Protocol):
    """What a worker offers to a service: see the methods of the same names in Service."""

    @property
    def name(self) -> str: ...

    def log(self, level: Level, text: str) -> None: ...

    def record(self, of: Client | Request, text: str, facts: Mapping[str, str]) -> None: ...

    def name_of(self, peer: Address, found: Callable[[str], None]) -> None: ...

    def ban(self, peer: Address, seconds: float, reason: str) -> None: ...

    def look_up(self, host: str, found: Callable[[tuple[str, ...]], None]) -> None: ...

    def distrust(self, host: str) -> None: ...

    @property
    def poller(self) -> Poller: ...

    @property
    def drains(self) -> bool: ...

    async def observe(self, what: str) -> bytes: ...

    def listens_on(self, transport: Transport, port: int) -> bool: ...

    def reachable(self) -> tuple[str, ...]: ...

    def pass_on(self, conn: Connection, name: str) -> bool: ...
