"""What a plugin is: a class with a name, options and the methods it can serve with.

Used in the worker, and where a configuration is checked. Knows nothing of the server.
"""

from __future__ import annotations

import inspect
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NoReturn, Protocol, cast

from pydantic import ConfigDict

from superd.config.model import BLOCKING_MODELS, Section
from superd.config.model import Service as Entry
from superd.net.addresses import Address, Transport
from superd.observe.records import Level
from superd.plugin.connection import Client, Connection
from superd.plugin.relay import Poller


class Options(Section):
    """Options of a plugin: a frozen model whose fields are the keys of `options = {...}`.

    A field `longest_line` is written `longest-line` in TOML. Its type is one that TOML has, a tuple
    or set of such, or another subclass of this for a table. Strings may be a `Literal`, members of
    an enumeration, `Path`, taken as it is written, and addresses and networks of `ipaddress`;
    `FilePath` and `ReadableFile` start at the configuration's directory. `Duration`, `Size` and
    `Rate` are written as for superd's own keys.
    """

    model_config = ConfigDict(defer_build=False)  # built once in the master, for all workers


class Request:
    """What asks for an answer: a datagram, or a connection (then `data` is empty).

    `room` is the most bytes that the answer may have: for a datagram no more than it had itself,
    unless the entry says `amplify = true`. A longer answer is dropped and counted.
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
        """Who asks; made only when wanted, since most answers do not depend on it."""
        return Address.from_sockaddr(self._transport, self._peer)

    @property
    def local(self) -> Address:
        """Which of our addresses was asked."""
        if isinstance(self._local, Address):
            return self._local
        return Address.from_sockaddr(self._transport, self._local.getsockname())


class Unavailable(Exception):
    """A plugin cannot serve just now: its client's connection is closed, and the text is logged
    without a traceback. Where `pause` is not 0, whoever comes in these seconds has to wait.
    """

    def __init__(self, text: str, pause: float = 0.0) -> None:
        super().__init__(text)
        self.pause = pause


class WrongOption(ValueError):
    """An option does not go with the rest of the entry; `key` is its name, as it is written, or
    that of a key of the entry itself.
    """

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


@dataclass(frozen=True)
class Waiting:
    """What waits at a socket that a plugin is to have: `peer` is who sent the first datagram, None
    where nobody is accepted yet. `log(level, text)` writes to superd's log.
    """

    local: Address
    peer: Address | None
    log: Callable[[Level, str], None]


class _NobodyYet:
    """Stands for the server until the service serves."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(f"{name}() works only once the service serves")


class Service:
    """A service that a plugin offers. Its life, in steps:

    1. `__init__(options)` checks and stores; no file is opened, so that any user can check. Then
       `check(entry)` does so with the rest of the entry.
    2. `prepare()` opens, reads and loads, before confinement. A rehearsal in a process of its own
       does steps 1 and 2 before anything is bound, so it may run more than once.
    3. The worker is confined: perhaps another user in an empty root directory, imports sealed.
       `start()` is called on the loop before anybody is accepted, for timers and tasks.
    4. One of the methods below runs for each connection or datagram:
       `respond(request) -> bytes` sends the answer and closes, or answers the datagram;
       `async stream(conn)` talks over a stream connection;
       `stream(conn)`, not async, does so with calls that block, in a thread or in a process of its
       own, as `model` of the entry says. What `prepare` opened is shared by all of them.
       `protocol(conn) -> asyncio.Protocol` does so at full speed;
       `datagram(request) -> bytes | None` answers a datagram, or keeps quiet;
       `async takeover(sock, conn)` has the raw, non-blocking socket until it returns; then what
       was sent is delivered and the socket closed, unless it was closed or detached already. It
       finds as many descriptors left as `descriptors` says, to begin with.
       `relay(sock, conn) -> Relay` has it without a coroutine, until it calls `conn.ended(end)`;
       each call there has to say that it must not wait, as the socket itself might, and `poller`
       tells when one would not;
       `relay_datagrams(conn) -> DatagramRelay` does so for all datagrams of one source, which is
       counted, limited and recorded as a connection is.
       `async listener(sock, waiting)` has the listening or datagram socket itself, if the entry
       says `wait = true`, and for datagrams where there is nothing else; superd polls no more until
       it returns how that ended.
       For streams the first of relay, protocol, async stream, takeover and respond that is there
       is used, and a stream that blocks where there is nothing else or the entry says so; for
       datagrams the first of relay_datagrams, datagram and respond.
    5. When the worker has drained, tasks that are still there are cancelled and have a second to
       clean up, a quarter of it where superd stops at once. Then the loop ends, and `close()` is
       called.

    What a method raises is logged with the connection's id and costs that connection only. One that
    runs on the loop and holds it up is logged with its stack; if it does not come back, the worker
    is ended. SIGALRM and its timer serve for that, so they are not a plugin's.
    """

    name: ClassVar[str] = ""
    options_model: ClassVar[type[Options]] = Options
    preload: ClassVar[tuple[str, ...]] = ()  # modules that are imported late, after confinement
    descriptors: ClassVar[int] = 0  # without so many more nobody is taken over: see `takeover`

    looks_up = (
        False  # whether it calls `look_up` or `name_of`, which take a resolver; set by `check`
    )

    def __init__(self, options: Options) -> None:
        self.options = options

    def prepare(self) -> None:
        """Open what is needed while the file system is still there: files, but no directory, as
        that would be a way out of a jail.
        """

    def preflight(self) -> None:
        """Check for `superd check` that `prepare` would succeed, and change nothing.

        Overridden by a plugin whose `prepare` creates files.
        """
        self.prepare()

    def close(self) -> None:
        """Let go of what `prepare` opened."""

    def check(self, entry: Entry) -> None:
        """Raise WrongOption where the options do not go with the rest of the entry."""

    @classmethod
    def check_all(cls, services: Mapping[str, Any]) -> Iterator[tuple[str, WrongOption]]:
        """Yield, by name, what is wrong with services of this class that only shows when all of
        those that are enabled are seen together. Each has been checked by itself.
        """
        yield from ()

    def start(self) -> None:
        """Start what runs beside the connections."""

    def status(self) -> list[dict[str, str | int | float]]:
        """Return rows that `superd status` is to show, of equal keys; asked once a second."""
        return []

    # What superd does for the service, once it serves: in step 4

    @property
    def entry_name(self) -> str:
        """The name of the entry in the configuration that is served."""
        return self._server.name

    def log(self, level: Level, text: str) -> None:
        """Write a line to superd's log that is about no connection; level as in Client.log."""
        self._server.log(level, text)

    def record(
        self, of: Client | Request, text: str, facts: Mapping[str, str] | None = None
    ) -> None:
        """Record something of a connection or a datagram: a text, and facts by their names, which
        are lower-case words. It goes where connections are recorded, as the event "noted". What
        does not fit into a line is left out; a client cannot forge any.
        """
        self._server.record(of, text, facts or {})

    def name_of(self, peer: Address, found: Callable[[str], None]) -> None:
        """Have `found` called with the name of a client's host, perhaps at once: what a reverse
        look-up says, if a forward look-up confirms it; "" for none. Never blocks.
        """
        self._server.name_of(peer, found)

    def ban(self, peer: Address, seconds: float, reason: str = "") -> None:
        """Have every service of this superd refuse `peer`, with its netblock as the entry says,
        for a time of at most a year. Connections that it has go on. Peers of unix sockets cannot
        be banned. Nobody should be for a datagram alone: its source may be forged.
        """
        self._server.ban(peer, seconds, reason)

    def look_up(self, host: str, found: Callable[[tuple[str, ...]], None]) -> None:
        """Have `found` called with the numeric addresses of a host, perhaps at once: the preferred
        first, none where there are none. Works in a jail, and never blocks.
        """
        self._server.look_up(host, found)

    @property
    def poller(self) -> Poller:
        """What has relays go on when their sockets are ready; from step 3."""
        return self._server.poller

    @property
    def drains(self) -> bool:
        """Whether this worker accepts no more, and waits for its connections to end."""
        return self._server.drains

    async def observe(self, what: Literal["metrics", "readiness"]) -> bytes:
        """Ask how superd is as a whole: its metrics, as Prometheus reads them, or what keeps it
        from serving all that it is to serve, b"" for nothing. Metrics may be a moment old.
        Raises TimeoutError where the master does not answer. For metrics only.
        """
        return await self._server.observe(what)

    def listens_on(self, transport: Transport, port: int) -> bool:
        """Tell whether this superd listens on a port of tcp or udp, at whatever address."""
        return self._server.listens_on(transport, port)

    def reachable(self) -> tuple[str, ...]:
        """Return the names of the services that listen on `tcpmux://NAME`, for tcpmux."""
        return self._server.reachable()

    def pass_on(self, conn: Connection, name: str) -> bool:
        """Give a connection that was taken over to one of these, which judges it by its own rules,
        and close its socket here; False where too many wait there already. For tcpmux only.
        """
        return self._server.pass_on(conn, name)

    _server: Server = cast("Server", _NobodyYet())  # the worker puts its own here


class Server(Protocol):
    """What a worker does for one of its services: see the methods of the same names there."""

    @property
    def name(self) -> str: ...

    def log(self, level: Level, text: str) -> None: ...

    def record(self, of: Client | Request, text: str, facts: Mapping[str, str]) -> None: ...

    def name_of(self, peer: Address, found: Callable[[str], None]) -> None: ...

    def ban(self, peer: Address, seconds: float, reason: str) -> None: ...

    def look_up(self, host: str, found: Callable[[tuple[str, ...]], None]) -> None: ...

    @property
    def poller(self) -> Poller: ...

    @property
    def drains(self) -> bool: ...

    async def observe(self, what: str) -> bytes: ...

    def listens_on(self, transport: Transport, port: int) -> bool: ...

    def reachable(self) -> tuple[str, ...]: ...

    def pass_on(self, conn: Connection, name: str) -> bool: ...


STREAM_METHODS = ("relay", "protocol", "stream", "takeover", "respond")
DATAGRAM_METHODS = ("relay_datagrams", "datagram", "respond", "listener")
ASYNC_METHODS = ("takeover", "listener")
ARGUMENTS = {
    "relay": "sock, conn",
    "protocol": "conn",
    "stream": "conn",
    "takeover": "sock, conn",
    "respond": "request",
    "relay_datagrams": "conn",
    "datagram": "request",
    "listener": "sock, waiting",
}


def kinds_of(service: type[Service]) -> tuple[str, ...]:
    """Return which of "stream" and "datagram" the class has methods for."""
    kinds = {"stream": STREAM_METHODS, "datagram": DATAGRAM_METHODS}
    return tuple(k for k, names in kinds.items() if any(hasattr(service, n) for n in names))


def only_relays(service: type[Service]) -> bool:
    """Tell whether the class relays whatever it serves."""
    relays = {"stream": "relay", "datagram": "relay_datagrams"}
    return all(hasattr(service, relays[kind]) for kind in kinds_of(service))


def models_of(service: type[Service]) -> tuple[str, ...]:
    """Return how the class can serve, of the models that an entry may name; the default first."""
    blocks = hasattr(service, "stream") and not inspect.iscoroutinefunction(service.stream)
    others = STREAM_METHODS if not blocks else [n for n in STREAM_METHODS if n != "stream"]
    loop = ("loop",) if any(hasattr(service, name) for name in others) else ()
    return (*loop, *(BLOCKING_MODELS if blocks else ())) or ("loop",)


def model_of(entry: Entry, service: type[Service]) -> str:
    """Return how an entry is served by the class."""
    return entry.model or models_of(service)[0]


def mistake_in(service: object) -> str | None:
    """Return what keeps `service`, found under a plugin's hook, from being served."""
    if not (isinstance(service, type) and issubclass(service, Service)):
        return f"superd_services gave {service!r}, which is not a subclass of Service"
    if not service.name:
        return f"{service.__qualname__}.name is empty"
    if not kinds_of(service):
        return f"{service.__qualname__} has none of the methods {', '.join(STREAM_METHODS)}"
    for name in (*STREAM_METHODS, *DATAGRAM_METHODS):
        method = getattr(service, name, None)
        is_async = inspect.iscoroutinefunction(method)
        if inspect.isasyncgenfunction(method) or inspect.isgeneratorfunction(method):
            return f"{service.__qualname__}.{name} is a generator, which would never run"
        if name in ASYNC_METHODS and method is not None and not is_async:
            return f"{service.__qualname__}.{name} is not async: it would block everybody else"
        if name not in (*ASYNC_METHODS, "stream") and is_async:
            return f"{service.__qualname__}.{name} is async, but it is to answer at once"
        if not _takes(service, name, ARGUMENTS[name].count(",") + 1):
            return f"{service.__qualname__}.{name} cannot be called as {name}({ARGUMENTS[name]})"
    return None


def _takes(service: type[Service], name: str, number: int) -> bool:
    """Tell whether a method takes so many arguments; True where only a call would tell."""
    method = inspect.getattr_static(service, name, None)
    if not inspect.isfunction(method):
        return True
    try:
        inspect.signature(method, follow_wrapped=False).bind(service, *[None] * number)
    except TypeError:
        return False
    return True
