"""`superd message`: says something to a service and prints what it answers.

Runs in the command line. Never shows a terminal what would control it. Raises UsageError,
SuperdError.
"""

from __future__ import annotations

import os
import sys

from superd.client.packets import NoAnswer, ask
from superd.client.reaching import Deadline, connect, datagram_sockets, duration, parse
from superd.client.standard import Output
from superd.errors import ExitCode, SuperdError, printable, reason
from superd.net.addresses import Transport
from superd.net.destinations import Destination

PATIENCE = 2.0  # seconds
PART = 65536


def message(address: str, text: str, timeout: str | None) -> int:
    """Send a text, `-` for what standard input has, and print the answer."""
    target = parse(address)
    deadline_of = duration("--timeout", timeout, PATIENCE)
    if text == "-":
        data = sys.stdin.buffer.read()
    else:
        data = os.fsencode(text)
        if target.transport in (None, Transport.TCP, Transport.UNIX):
            data += b"\n"  # what is typed is a line where there are lines
    deadline = Deadline(deadline_of)
    if target.transport is not None and target.transport.is_datagram:
        _print(ask(target, datagram_sockets(target, deadline), data, deadline).data)
    else:
        _converse(target, data, deadline)
    return int(ExitCode.OK)


def _converse(target: Destination, data: bytes, deadline: Deadline) -> None:
    """Say it all, and print what comes until the other side ends."""
    answer = b""
    connection, _ = connect(target, deadline)
    with connection:
        try:
            connection.settimeout(deadline.left_to_wait)
            connection.sendall(data)
            connection.shutdown(1)
            while True:
                connection.settimeout(deadline.left_to_wait)
                part = connection.recv(PART)
                if not part:
                    break
                answer += part
        except TimeoutError:
            _print(answer)
            what = "the answer has no end" if answer else "no answer"
            raise NoAnswer(f"{what} from {target} in {deadline}") from None
        except OSError as error:
            _print(answer)
            raise SuperdError(f"{target} broke the connection: {reason(error)}") from None
    if not answer:
        raise SuperdError(f"{target} closed without an answer")
    _print(answer)


def _print(answer: bytes) -> None:
    """Print an answer, raw but at a terminal."""
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
