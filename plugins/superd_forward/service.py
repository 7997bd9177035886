"""The service: its options, and what it starts for a connection or a source of datagrams."""

from __future__ import annotations

import asyncio
import ipaddress
import os.path
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from superd.plugin import (
    ANY_IPV4,
    ANY_IPV6,
    OWN_HEADER_V1,
    OWN_HEADER_V2,
    Address,
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
    proxy_header_v1,
    proxy_header_v2,
)
from superd_forward.context import Context
from superd_forward.datagrams import Datagrams, ForwardedDatagrams
from superd_forward.probes import Probe, keep_probing
from superd_forward.relay import ForwardedConnection
from superd_forward.targets import POLICIES, Target, Targets

MOST_WEIGHT = 1000
OWN_HEADERS = {"v1": OWN_HEADER_V1, "v2": OWN_HEADER_V2, "": b""}
HEADERS = {"v1": proxy_header_v1, "v2": proxy_header_v2, "": None}


def _destination(value: object) -> Destination:
    if not isinstance(value, str):
        raise ValueError("expected an address such as tcp://10.0.0.5:8080")
    return parse_destination(value)


def _host(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text)) if text else ""
    except ValueError:
        raise ValueError("expected an IPv4 or IPv6 address without a port") from None


Place = Annotated[Destination, BeforeValidator(_destination), WithJsonSchema({"type": "string"})]


class WeightedTarget(Options):
    address: Annotated[Place, Field(description="tcp://, udp://, unix:// or unixgram://")]
    weight: Annotated[
        int, Field(ge=1, le=MOST_WEIGHT, description="its share among the others")
    ] = 1


_ONE: list[dict[str, Any]] = [
    {"type": "string"},
    {
        "type": "object",
        "properties": {
            "address": {"type": "string"},
            "weight": {"type": "integer", "minimum": 1, "maximum": MOST_WEIGHT},
        },
        "required": ["address"],
        "additionalProperties": False,
    },
]
TARGETS = {"anyOf": [*_ONE, {"type": "array", "items": {"anyOf": _ONE}}]}


def _targets(value: object) -> object:
    """Take one target or several, each as a string or as a table."""
    several = value if isinstance(value, list) else [value]
    return [one if isinstance(one, dict) else {"address": one} for one in several]


class ForwardOptions(Options):
    to: Annotated[
        tuple[WeightedTarget, ...],
        BeforeValidator(_targets),
        WithJsonSchema(TARGETS),
        Field(
            min_length=1,
            examples=["tcp://127.0.0.1:8080"],
            description="one target or several: a string, or a table with address and weight",
        ),
    ]
    balance: Annotated[
        Literal["round-robin", "least-connections", "source", "first"],
        Field(description="which of several targets a client gets"),
    ] = "round-robin"
    connect_timeout: Annotated[
        PositiveDuration, Field(description="until a target has taken the connection")
    ] = 5.0
    half_close_timeout: Annotated[
        Duration,
        Field(description="without a byte, once one side has sent its last; 0 for none"),
    ] = 300.0
    datagram_timeout: Annotated[
        PositiveDuration, Field(description="without a datagram, until a source is forgotten")
    ] = 60.0
    datagram_replies: Annotated[
        int,
        Field(ge=0, description="after so many answers to each one, too; 1 for DNS, 0 for no end"),
    ] = 0
    bind_to: Annotated[
        str, AfterValidator(_host), Field(description="our address that targets see")
    ] = ""
    proxy_protocol: Annotated[
        Literal["v1", "v2"] | None,
        Field(description="tell targets who the client is, in front of what it sends"),
    ] = None
    fail_after: Annotated[
        int, Field(ge=0, description="failures in a row until a target is left out; 0 for never")
    ] = 1
    retry_after: Annotated[
        Duration, Field(description="how long a target that has failed is left out")
    ] = 10.0
    probe: Annotated[Probe | None, Field(description="ask targets whether they serve")] = None


class Forward(Service):
    """Passes connections, and datagrams by their source, on to one of several targets.

    Both sides see what they would see without it: the end of input of one side while the other goes
    on, a reset, a refusal. The entry's time-outs and limits hold; `nodelay` and `keepalive` are for
    both sides.
    """

    name = "forward"
    options_model = ForwardOptions
    options: ForwardOptions

    context: Context
    datagrams: Datagrams

    def check(self, entry: Entry) -> None:
        self.entry = entry
        options = self.options
        self.looks_up = any(place.address.is_name for place in options.to)
        for transport in dict.fromkeys(address.transport for address in entry.listen):
            kind = "datagrams" if transport.is_datagram else "connections"
            if transport.value == "unixpacket":
                text = (
                    "nothing can be forwarded from unixpacket addresses; listen on unix:// instead"
                )
                raise WrongOption("to", text)
            if not self._places(datagrams=transport.is_datagram):
                text = f"no target takes {kind}, and the service listens on {transport.value}"
                fitting = "udp:// or unixgram://" if transport.is_datagram else "tcp:// or unix://"
                raise WrongOption("to", f"{text}; add one that starts with {fitting}")
        by_datagrams = any(address.transport.is_datagram for address in entry.listen)
        if by_datagrams and options.probe and not (options.probe.send and options.probe.expect):
            raise WrongOption("probe", "to probe by datagrams takes both send and expect")
        if by_datagrams and options.proxy_protocol == "v1":
            raise WrongOption("proxy-protocol", "v1 cannot precede datagrams, only v2 can")
        for place in options.to:
            self._check_place(place.address, entry)

    @classmethod
    def check_all(cls, services: Mapping[str, Forward]) -> Iterator[tuple[str, WrongOption]]:
        """Complain of services that forward in a circle."""
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
                text = f"what is forwarded comes back here, by way of {others}"
                yield name, WrongOption("to", text)

    def _leads_to(self, other: Forward) -> bool:
        return any(
            _is_same(place.address, listener)
            for place in self.options.to
            for listener in other.entry.listen
        )

    def _check_place(self, place: Destination, entry: Entry) -> None:
        for listener in entry.listen:
            if _is_same(place, listener):
                raise WrongOption("to", f"{place} is where the service itself listens")
        if not any(place.serves(datagrams=a.transport.is_datagram) for a in entry.listen):
            raise WrongOption(
                "to", f"{place} would get nothing: no address in listen is of its kind"
            )
        folder = os.path.dirname(place.path)
        if entry.chroot and place.path.startswith("/") and not os.path.isdir(entry.chroot + folder):
            text = f"{place} cannot be reached from the chroot {entry.chroot}"
            raise WrongOption("to", f'{text}; set chroot = "", or use an abstract name (unix://@x)')
        bind_to = self.options.bind_to
        if bind_to and place.host and not place.is_name and (":" in bind_to) != (":" in place.host):
            raise WrongOption("bind-to", f"{bind_to} is of another family than {place}")

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        options, entry = self.options, self.entry
        self.context = Context(
            loop,
            self.poller,
            self._targets(datagrams=False),
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
            self._targets(datagrams=True),
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
        return [target.row(now) for target in both]

    def close(self) -> None:
        for probing in self.probing:
            probing.cancel()

    def _places(self, *, datagrams: bool) -> list[WeightedTarget]:
        """Return the targets that take datagrams, or connections, as somebody here sends any."""
        listens = any(a.transport.is_datagram == datagrams for a in self.entry.listen)
        return [p for p in self.options.to if listens and p.address.serves(datagrams=datagrams)]

    def _targets(self, *, datagrams: bool) -> Targets:
        made = [
            Target(
                place.address,
                place.weight,
                datagrams=datagrams,
                fail_after=self.options.fail_after,
                retry_after=self.options.retry_after,
                is_ours=self.listens_on,
                log=self.log,
            )
            for place in self._places(datagrams=datagrams)
        ]
        return Targets(made, POLICIES[self.options.balance]())


def _is_same(place: Destination, listener: Address) -> bool:
    """Tell whether who connects there comes back here."""
    if not place.serves(datagrams=listener.transport.is_datagram):
        return False
    if place.path or listener.transport.is_unix:
        return place.path == listener.path and bool(place.path)
    if place.port != listener.port:
        return False
    return place.host == listener.host or (_covers(listener, place) and _is_own(place.host))


def _covers(listener: Address, place: Destination) -> bool:
    """Tell whether it is a wildcard of the place's family; `[::]` is of IPv6 only."""
    if place.is_name or listener.host == "*":
        return listener.is_wildcard
    return listener.host == (ANY_IPV6 if ":" in place.host else ANY_IPV4)


def _is_own(host: str) -> bool:
    """Tell whether a numeric host is certainly this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in ("localhost", socket.gethostname().lower())
