"""tcpmux: passes each connection to the service whose name it sends (RFC 1078).

Options: timeout.
Example: plugin = "tcpmux", listen = "tcp://*:1"; and listen = "tcpmux://finger" for a service
See also: inetd.conf(5)
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Annotated

from pydantic import Field

from superd.plugin import Connection, Options, PositiveDuration, Service, hookimpl

MAX_NAME_BYTES = 256
HELP = b"help"
UNKNOWN = b"-There is no such service\r\n"
BUSY = b"-The service is busy\r\n"
TOO_LONG = b"-The name is too long\r\n"


class TcpmuxOptions(Options):
    timeout: Annotated[PositiveDuration, Field(description="until the name has arrived")] = 10.0


class Tcpmux(Service):
    """Reads a line with a name and passes the connection to the service on `tcpmux://NAME`.

    That service admits or refuses the client by its own rules and limits, and answers `+Go` or the
    refusal. HELP is answered with all names. Names are not case-sensitive.
    """

    name = "tcpmux"
    options_model = TcpmuxOptions
    options: TcpmuxOptions

    async def takeover(self, sock: socket.socket, conn: Connection) -> None:
        try:
            name = await asyncio.wait_for(_read_line(sock), self.options.timeout)
        except TimeoutError:
            conn.note("no name in time")
            return
        if name is None:
            await _answer(sock, TOO_LONG)
        elif name == HELP:
            names = "".join(f"{name}\r\n" for name in self.reachable())
            await _answer(sock, names.encode("ascii"))
        else:
            await self._pass(sock, conn, name.decode("ascii", "replace"))

    async def _pass(self, sock: socket.socket, conn: Connection, name: str) -> None:
        if name not in self.reachable():
            conn.note("no such service")
            await _answer(sock, UNKNOWN)
        elif self.pass_on(conn, name):
            conn.note(f"passed to {name}")
        else:
            conn.note(f"{name} is busy")
            await _answer(sock, BUSY)


async def _read_line(sock: socket.socket) -> bytes | None:
    """Return the first line in lower case; None if it is too long.

    Reads no byte beyond it: the rest belongs to the service. A line that is cut off by the end of
    input counts as a line.
    """
    loop = asyncio.get_running_loop()
    line = b""
    while not line.endswith(b"\n"):
        if len(line) > MAX_NAME_BYTES:
            return None
        byte = await loop.sock_recv(sock, 1)
        if not byte:
            break
        line += byte
    return line.rstrip(b"\r\n").lower()


async def _answer(sock: socket.socket, answer: bytes) -> None:
    with suppress(ConnectionError):
        await asyncio.get_running_loop().sock_sendall(sock, answer)


@hookimpl
def superd_services() -> list[type[Service]]:
    return [Tcpmux]
