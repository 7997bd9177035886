"""message: remembers the last message and tells it to whoever sends the next.

Options: first, the answer to the very first message.
Example: plugin = "message", listen = ["tcp://*:7051", "udp://*:7051"]
See also: qotd
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from superd.plugin import Address, Connection, LineTooLong, Options, Request, Service, hookimpl

LONGEST = 512


class MessageOptions(Options):
    first: Annotated[
        str, Field(max_length=LONGEST, description="answer to the very first message")
    ] = "there is no message yet"


class Message(Service):
    """Takes a line, or a datagram, and answers with the one before it as `[host] text`.

    Remembers for as long as its worker lives, over all of its addresses; with several workers
    each has a message of its own. Over udp a longer answer than the request is not sent unless
    the entry says `amplify = true`.
    """

    name = "message"
    options_model = MessageOptions
    options: MessageOptions

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.last = self.options.first

    async def stream(self, conn: Connection) -> None:
        try:
            line = await conn.readline(LONGEST)
        except LineTooLong:
            await conn.send(f"a message has at most {LONGEST} bytes\r\n".encode())
            return
        if line:
            await conn.send(self.exchange(line, conn.peer) + b"\r\n")

    def datagram(self, request: Request) -> bytes:
        return self.exchange(request.data[:LONGEST], request.peer)

    def exchange(self, message: bytes, peer: Address) -> bytes:
        """Remember `message` and return the one before it."""
        answer = self.last.encode()
        text = message.decode(errors="replace").strip()
        harmless = "".join(c if c.isprintable() else "?" for c in text)
        self.last = f"[{peer.host or 'localhost'}] {harmless}"
        return answer


@hookimpl
def superd_services() -> list[type[Service]]:
    return [Message]
