"""The commands that are clients of other services: their arguments, and what runs them.

Runs in the command line. Imports a client when it runs, so that the others start fast.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

Command = Callable[[argparse.Namespace], int]
Add = Callable[[str, Command, str], argparse.ArgumentParser]

ADDRESS = "such as tcp://HOST:PORT, HOST:PORT, udp://HOST:PORT, unix:///PATH or unix://@NAME"


def add_clients(add: Add) -> None:
    """Add the commands to those of superd."""
    connect = add(
        "connect",
        _connect,
        "connect standard input and output with an address; exit 0 when both sides have ended",
    )
    connect.add_argument("address", metavar="ADDRESS", help=ADDRESS)
    connect.add_argument(
        "--line", action="store_true", help="at a terminal: edit a line, then send it; udp: by line"
    )
    connect.add_argument(
        "--no-half-close", action="store_true", help="do not tell that the input has ended"
    )
    connect.add_argument(
        "--timeout",
        metavar="TIME",
        help="to connect, and without a byte; udp: after the last answer (default: 1s)",
    )
    connect.add_argument("--source", default="", metavar="HOST", help="own address to come from")
    connect.add_argument("--tls", action="store_true", help="encrypt; the certificate is verified")
    connect.add_argument("--ca", metavar="FILE", help="trust these certificates, not the system's")
    connect.add_argument("--server-name", metavar="NAME", help="whose certificate it has to be")
    connect.add_argument("--insecure", action="store_true", help="do not verify the certificate")
    clock = add(
        "clock", _clock, "tell how far another host's clock is from this one (RFC 868, udp)"
    )
    clock.add_argument("host", metavar="HOST[:PORT]", help="default port: 37")
    clock.add_argument("--tcp", action="store_true", help="ask by tcp")
    message = add("message", _message, "send a text, usually as a datagram, and print the answer")
    message.add_argument("address", metavar="ADDRESS", help=ADDRESS)
    message.add_argument("text", metavar="TEXT", help="- for standard input")
    whoami = add("whoami", _whoami, "show this machine's names and addresses")
    whoami.add_argument(
        "address",
        nargs="?",
        metavar="ADDRESS",
        help="as whom one there would see this side; tcp:// connects, else nothing is sent",
    )
    whoami.add_argument("--json", action="store_true", help="as JSON")
    for one in (clock, message, whoami):
        one.add_argument("--timeout", metavar="TIME", help="default: 2s")


def _connect(options: argparse.Namespace) -> int:
    from superd.client.connect import Manner, connect_two_ways

    manner = Manner(
        half_close=not options.no_half_close,
        by_lines=options.line,
        timeout=options.timeout,
        source=options.source,
        tls=options.tls,
        authorities=options.ca,
        server_name=options.server_name,
        insecure=options.insecure,
    )
    return connect_two_ways(options.address, manner)


def _clock(options: argparse.Namespace) -> int:
    from superd.client.clock import clock

    return clock(options.host, by_tcp=options.tcp, timeout=options.timeout)


def _message(options: argparse.Namespace) -> int:
    from superd.client.message import message

    return message(options.address, options.text, options.timeout)


def _whoami(options: argparse.Namespace) -> int:
    from superd.client.whoami import whoami

    return whoami(options.address, as_json=options.json, timeout=options.timeout)
