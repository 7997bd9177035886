"""`superd connect`: sends standard input to an address and writes the answer to standard output.

Runs in the command line. Never changes a byte. Raises UsageError, SuperdError, BrokenPipeError.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from superd.client.packets import QUIET_TIMEOUT, Datagrams
from superd.client.reaching import Deadline, connect, datagram_sockets, duration, parse
from superd.client.standard import Input, Output
from superd.client.streams import PACKET_SIZE, STREAM_BUFFER_SIZE, Exchange, Plain, Stream
from superd.errors import ExitCode, UsageError
from superd.net.addresses import Transport, parse_own_host
from superd.net.destinations import Destination


@dataclass(frozen=True)
class ConnectOptions:
    """How to connect, and what to do at the end of the input."""

    half_close: bool = True
    by_lines: bool = False
    timeout: str | None = None
    source: str = ""
    tls: bool = False
    authorities: str | None = None
    server_name: str | None = None
    insecure: bool = False


def run(address: str, **options: Any) -> int:
    """Run the command; the keyword arguments are the fields of ConnectOptions."""
    return connect_two_ways(address, ConnectOptions(**options))


def connect_two_ways(address: str, options: ConnectOptions) -> int:
    """Connect standard input and output to an address; exit 0 once both sides have ended."""
    target = parse(address)
    seconds = duration("--timeout", options.timeout)
    is_datagram = target.transport is not None and target.transport.is_datagram
    is_stream = target.transport in (None, Transport.TCP, Transport.UNIX)
    if options.tls and not is_stream:
        raise UsageError(f"--tls takes a tcp or unix address, found {target}")
    if options.source and target.path:
        raise UsageError(f"--source takes a tcp or udp address, found {target}")
    if ":" in options.source:
        try:
            parse_own_host(options.source)
        except ValueError as error:
            raise UsageError(f"--source: {error}") from None
    if not options.tls and (options.authorities or options.server_name or options.insecure):
        raise UsageError("--ca, --server-name and --insecure take --tls")
    with contextlib.ExitStack() as stack:
        if is_datagram:
            sockets = datagram_sockets(target, Deadline(seconds), options.source)
            source, sink = stack.enter_context(_standard(options.by_lines))
            quiet_timeout = QUIET_TIMEOUT if seconds is None else seconds
            datagrams = Datagrams(
                target,
                sockets,
                source,
                sink,
                quiet_timeout=quiet_timeout,
                by_lines=options.by_lines,
            )
            stack.callback(datagrams.close)
            datagrams.run()
            return int(ExitCode.OK)
        stream = stack.enter_context(_stream(target, options, Deadline(seconds)))
        source, sink = stack.enter_context(_standard(options.by_lines))
        exchange = Exchange(
            str(target),
            stream,
            source,
            sink,
            half_close=options.half_close,
            idle_timeout=seconds,
            size=STREAM_BUFFER_SIZE if is_stream else PACKET_SIZE,
        )
        exchange.run()
    return int(ExitCode.OK)


@contextlib.contextmanager
def _standard(by_lines: bool) -> Iterator[tuple[Input, Output]]:
    from superd.client.editing import edited_lines  # late: only --line needs a terminal

    sink = Output()
    try:
        if not by_lines:
            yield Input(), sink
            return
        with edited_lines() as source:
            yield source, sink
    finally:
        sink.close()


@contextlib.contextmanager
def _stream(target: Destination, options: ConnectOptions, deadline: Deadline) -> Iterator[Stream]:
    """Yield a connection, encrypted if `options` say so."""
    if not options.tls:
        connection, _ = connect(target, deadline, options.source)
        with connection:
            yield Plain(connection)
        return
    from superd.client.encryption import Trust, encrypted  # late: it loads OpenSSL

    server_name = target.host if options.server_name is None else options.server_name
    trust = Trust(server_name, options.authorities, insecure=options.insecure)
    connection, _ = connect(target, deadline, options.source)
    with connection:
        stream = encrypted(connection, str(target), trust, deadline)
        try:
            yield stream
        finally:
            stream.close()
