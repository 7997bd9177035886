"""`superd message`: sends a text to a service and prints the answer.

Runs in the command line. Never writes control characters to a terminal. Raises UsageError,
SuperdError.
"""

from __future__ import annotations

import os
import socket
import sys

from superd.client.packets import NoAnswer, ask
from superd.client.reaching import Deadline, connect, datagram_sockets, duration, parse
from superd.client.standard import Output
from superd.errors import ExitCode, SuperdError, printable, reason
from superd.net.addresses import Transport
from superd.net.destinations import Destination

DEFAULT_TIMEOUT = 2.0  # seconds
RECEIVE_SIZE = 65536  # bytes


def message(address: str, text: str, timeout: str | None) -> int:
    """Send a text, or standard input if it is `-`, and print the answer."""
    target = parse(address)
    seconds = duration("--timeout", timeout, DEFAULT_TIMEOUT)
    if text == "-":
        data = sys.stdin.buffer.read()
    else:
        data = os.fsencode(text)
        if target.transport in (None, Transport.TCP, Transport.UNIX):
            data += b"\n"  # services over streams expect a line
    deadline = Deadline(seconds)
    if target.transport is not None and target.transport.is_datagram:
        _print(ask(target, datagram_sockets(target, deadline), data, deadline).data)
    else:
        _exchange(target, data, deadline)
    return int(ExitCode.OK)


def _exchange(target: Destination, data: bytes, deadline: Deadline) -> None:
    """Send everything, and print what the service sends until it ends."""
    answer = b""
    connection, _ = connect(target, deadline)
    with connection:
        try:
            connection.settimeout(deadline.left_to_wait)
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while True:
                connection.settimeout(deadline.left_to_wait)
                part = connection.recv(RECEIVE_SIZE)
                if not part:
                    break
                answer += part
        except TimeoutError:
            _print(answer)
            what = "no end of the answer" if answer else "no answer"
            raise NoAnswer(f"{what} from {target} in {deadline}") from None
        except OSError as error:
            _print(answer)
            raise SuperdError(f"{target} broke the connection: {reason(error)}") from None
    if not answer:
        raise SuperdError(f"{target} closed without an answer")
    _print(answer)


def _print(answer: bytes) -> None:
    """Print an answer: raw, but escaped at a terminal."""
    if not answer:
        return
    if os.isatty(1):
        lines = answer.decode(errors="backslashreplace").splitlines()
        answer = "".join(f"{printable(line)}\n" for line in lines).encode(
            sys.stdout.encoding, "backslashreplace"
        )
    output = Output()
    try:
        output.write_all(answer)
    finally:
        output.close()
