"""message: keeps the last message and sends it to the next client.

Options: first, the answer to the very first message.
Example: plugin = "message", listen = ["tcp://*:7051", "udp://*:7051"]
See also: qotd
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from superd.plugin import Address, Connection, LineTooLong, Options, Request, Service, hookimpl

MAX_MESSAGE_BYTES = 512  # a line with its line feed, or a datagram


class MessageOptions(Options):
    first: Annotated[
        str, Field(max_length=MAX_MESSAGE_BYTES, description="answer to the very first message")
    ] = "there is no message yet"


class Message(Service):
    """Reads a line, or a datagram, and answers with the one before it as `[host] text`.

    The message is kept in memory until the worker ends, and shared by all addresses of the service.
    Each of several workers has a message of its own. Over udp an answer longer than the request is
    not sent unless the entry says `amplify = true`.
    """

    name = "message"
    options_model = MessageOptions
    options: MessageOptions

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.last = self.options.first

    async def stream(self, conn: Connection) -> None:
        try:
            line = await conn.readline(MAX_MESSAGE_BYTES)
        except LineTooLong:
            await conn.send(f"a message has at most {MAX_MESSAGE_BYTES} bytes\r\n".encode())
            return
        if line:
            await conn.send(self.exchange(line, conn.peer) + b"\r\n")

    def datagram(self, request: Request) -> bytes:
        answer = self.exchange(request.data[:MAX_MESSAGE_BYTES], request.peer)
        return answer[: request.room]

    def exchange(self, message: bytes, peer: Address) -> bytes:
        """Store `message` and return the one before it."""
        answer = self.last.encode()
        text = message.decode(errors="replace").strip()
        printable = "".join(c if c.isprintable() else "?" for c in text)
        self.last = f"[{peer.host or 'localhost'}] {printable}"
        return answer


@hookimpl
def superd_services() -> list[type[Service]]:
    return [Message]
