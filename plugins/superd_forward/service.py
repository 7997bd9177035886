"""The service: its options, their checks, and a relay for each connection or datagram source."""

from __future__ import annotations

import asyncio
import os.path
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from superd.plugin import (
    OWN_HEADER_V1,
    OWN_HEADER_V2,
    DatagramRelay,
    Destination,
    Duration,
    Entry,
    Options,
    PositiveDuration,
    Relay,
    Relayed,
    RelayedDatagrams,
    Service,
    WrongOption,
    parse_destination,
    parse_own_host,
    proxy_header_v1,
    proxy_header_v2,
)
from superd_forward.checking import ports_of, range_mistake, reaches
from superd_forward.context import Context
from superd_forward.datagrams import Datagrams, ForwardedDatagrams
from superd_forward.probes import Probe, keep_probing
from superd_forward.relay import ForwardedConnection
from superd_forward.targets import POLICIES, Target, Targets, TargetsByPort

MAX_WEIGHT = 1000
OWN_HEADERS = {"v1": OWN_HEADER_V1, "v2": OWN_HEADER_V2, "": b""}
HEADERS = {"v1": proxy_header_v1, "v2": proxy_header_v2, "": None}


def _destination(value: object) -> Destination:
    if not isinstance(value, str):
        raise ValueError("expected an address such as tcp://10.0.0.5:8080")
    return parse_destination(value, may_be_range=True)


def _host(text: str) -> str:
    return parse_own_host(text) if text else ""


TargetDestination = Annotated[
    Destination, BeforeValidator(_destination), WithJsonSchema({"type": "string"})
]


class WeightedTarget(Options):
    address: Annotated[
        TargetDestination, Field(description="tcp://, udp://, unix:// or unixgram://")
    ]
    weight: Annotated[int, Field(ge=1, le=MAX_WEIGHT, description="its share of the clients")] = 1


_TARGET_SCHEMA: list[dict[str, Any]] = [
    {"type": "string"},
    {
        "type": "object",
        "properties": {
            "address": {"type": "string"},
            "weight": {"type": "integer", "minimum": 1, "maximum": MAX_WEIGHT},
        },
        "required": ["address"],
        "additionalProperties": False,
    },
]
TARGETS_SCHEMA = {"anyOf": [*_TARGET_SCHEMA, {"type": "array", "items": {"anyOf": _TARGET_SCHEMA}}]}


def _targets(value: object) -> object:
    """Accept one target or several, each as a string or as a table."""
    several = value if isinstance(value, list) else [value]
    return [one if isinstance(one, dict) else {"address": one} for one in several]


class ForwardOptions(Options):
    to: Annotated[
        tuple[WeightedTarget, ...],
        BeforeValidator(_targets),
        WithJsonSchema(TARGETS_SCHEMA),
        Field(
            min_length=1,
            examples=["tcp://127.0.0.1:8080"],
            description="one target or several: a string, or a table with address and weight",
        ),
    ]
    balance: Annotated[
        Literal["round-robin", "least-connections", "source", "first"],
        Field(description="how a target is chosen for a client"),
    ] = "round-robin"
    connect_timeout: Annotated[
        PositiveDuration, Field(description="until a target accepts the connection")
    ] = 5.0
    half_close_timeout: Annotated[
        Duration,
        Field(description="idle time, once one side has ended its output; 0 for no limit"),
    ] = 300.0
    datagram_timeout: Annotated[
        PositiveDuration, Field(description="idle time until a source is dropped")
    ] = 60.0
    datagram_replies: Annotated[
        int,
        Field(
            ge=0,
            description="answers to each datagram, then its source is dropped; 1 for DNS, "
            "0 for no limit",
        ),
    ] = 0
    bind_to: Annotated[
        str, AfterValidator(_host), Field(description="local address to connect from")
    ] = ""
    proxy_protocol: Annotated[
        Literal["v1", "v2"] | None,
        Field(description="send targets the client's address, before its data"),
    ] = None
    fail_after: Annotated[
        int, Field(ge=0, description="failures in a row until a target is left out; 0 for never")
    ] = 1
    retry_after: Annotated[Duration, Field(description="how long a failed target is left out")] = (
        10.0
    )
    probe: Annotated[
        Probe | None, Field(description="check periodically whether targets serve")
    ] = None


class Forward(Service):
    """Forwards each connection, and the datagrams of each source, to one of several targets.

    Both sides see what they would see without it: the end of input of one side while the other
    continues, a reset, a refusal. The entry's time-outs and limits apply; `nodelay` and `keepalive`
    apply to both sides.
    """

    name = "forward"
    options_model = ForwardOptions
    options: ForwardOptions

    context: Context
    datagrams: Datagrams

    def check(self, entry: Entry) -> None:
        self.entry = entry
        options = self.options
        self.looks_up = any(target.address.is_name for target in options.to)
        for transport in dict.fromkeys(address.transport for address in entry.listen):
            kind = "datagrams" if transport.is_datagram else "connections"
            if transport.value == "unixpacket":
                text = "unixpacket addresses cannot be forwarded; listen on unix:// instead"
                raise WrongOption("listen", text)
            if not self._weighted_targets(datagrams=transport.is_datagram):
                text = f"no target accepts {kind}, but the service listens on {transport.value}"
                fitting = "udp:// or unixgram://" if transport.is_datagram else "tcp:// or unix://"
                raise WrongOption("to", f"{text}; add one that starts with {fitting}")
        by_datagrams = any(address.transport.is_datagram for address in entry.listen)
        if by_datagrams and options.probe and not (options.probe.send and options.probe.expect):
            raise WrongOption("probe", "probing by datagrams requires both send and expect")
        if by_datagrams and options.proxy_protocol == "v1":
            raise WrongOption("proxy-protocol", "v1 does not support datagrams; use v2")
        for target in options.to:
            self._check_target(target.address, entry)
            if mistake := range_mistake(target.address, entry):
                raise WrongOption("to", mistake)

    @classmethod
    def check_all(cls, services: Mapping[str, Forward]) -> Iterator[tuple[str, WrongOption]]:
        """Report forwarding loops between services."""
        leads_to = {
            name: [other for other in services if service._leads_to(services[other])]
            for name, service in services.items()
        }
        for name in services:
            reached, new = set[str](), leads_to[name]
            while new:
                reached.update(new)
                new = [far for near in new for far in leads_to[near] if far not in reached]
            if name in reached:
                others = ", ".join(f"service.{other}" for other in sorted(reached - {name}))
                text = f"forwarding loop: connections come back here by way of {others}"
                yield name, WrongOption("to", text)

    def _leads_to(self, other: Forward) -> bool:
        return any(
            reaches(target.address, listener)
            for target in self.options.to
            for listener in other.entry.listen
        )

    def _check_target(self, to: Destination, entry: Entry) -> None:
        for listener in entry.listen:
            if reaches(to, listener):
                raise WrongOption("to", f"{to} is an address of the service itself")
        if not any(to.serves(datagrams=a.transport.is_datagram) for a in entry.listen):
            raise WrongOption("to", f"{to} would get nothing: listen has no address of its kind")
        folder = os.path.dirname(to.path)
        if entry.chroot and to.path.startswith("/") and not os.path.isdir(entry.chroot + folder):
            text = f"{to} cannot be reached from the chroot {entry.chroot}"
            raise WrongOption("to", f'{text}; set chroot = "", or use an abstract name (unix://@x)')
        bind_to = self.options.bind_to
        if bind_to and to.host and not to.is_name and (":" in bind_to) != (":" in to.host):
            raise WrongOption("bind-to", f"{bind_to} is of another family than {to}")

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        options, entry = self.options, self.entry
        self.context = Context(
            loop,
            self.poller,
            self._make_targets(datagrams=False),
            self.look_up,
            nodelay=entry.nodelay,
            keepalive=entry.keepalive,
            bind_to=options.bind_to,
            connect_timeout=options.connect_timeout,
            half_close_timeout=options.half_close_timeout,
            header=HEADERS[options.proxy_protocol or ""],
        )
        self.datagrams = Datagrams(
            self.context,
            self._make_targets(datagrams=True),
            timeout=options.datagram_timeout,
            replies=options.datagram_replies,
        )
        self.probing = set[asyncio.Task[None]]()
        if options.probe is not None:
            header = OWN_HEADERS[options.proxy_protocol or ""]
            for target in (*self.context.targets.all, *self.datagrams.targets.all):
                probing = keep_probing(target, options.probe, self.context, header)
                self.probing.add(loop.create_task(probing))

    def relay(self, sock: socket.SocketType, conn: Relayed) -> Relay:
        return ForwardedConnection(self.context, sock, conn)

    def relay_datagrams(self, conn: RelayedDatagrams) -> DatagramRelay:
        return ForwardedDatagrams(self.datagrams, conn)

    def status(self) -> list[dict[str, str | int | float]]:
        now = time.monotonic()
        both = (*self.context.targets.all, *self.datagrams.targets.all)
        return [target.status_row(now) for target in both]

    def close(self) -> None:
        for probing in self.probing:
            probing.cancel()

    def _weighted_targets(self, *, datagrams: bool) -> list[WeightedTarget]:
        """Return the targets for datagrams, or for connections, if the service listens for any."""
        listens = any(a.transport.is_datagram == datagrams for a in self.entry.listen)
        return [
            one for one in self.options.to if listens and one.address.serves(datagrams=datagrams)
        ]

    def _make_targets(self, *, datagrams: bool) -> Targets | TargetsByPort:
        weighted = self._weighted_targets(datagrams=datagrams)
        if not any(one.address.last_port for one in weighted):
            return self._targets([(one.address, one.weight) for one in weighted], {}, datagrams)
        made: dict[Destination, Target] = {}  # one target for all ports, unless it is a range
        ports = ports_of(self.entry, datagrams=datagrams)
        return TargetsByPort(
            {
                port: self._targets(
                    [(one.address.at(number), one.weight) for one in weighted], made, datagrams
                )
                for number, port in enumerate(ports)
            }
        )

    def _targets(
        self,
        weighted: Iterable[tuple[Destination, int]],
        made: dict[Destination, Target],
        datagrams: bool,
    ) -> Targets:
        """Return the targets of some destinations; those that were made already are reused."""
        found = []
        for destination, weight in weighted:
            target = made.get(destination)
            if target is None:
                target = made[destination] = Target(
                    destination,
                    weight,
                    datagrams=datagrams,
                    fail_after=self.options.fail_after,
                    retry_after=self.options.retry_after,
                    listens_on=self.listens_on,
                    log=self.log,
                    distrust=self.distrust,
                )
            found.append(target)
        return Targets(found, POLICIES[self.options.balance]())
