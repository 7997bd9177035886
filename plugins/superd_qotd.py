"""qotd: sends a quote (RFC 865).

Options: quotes, a file of quotes separated by lines of "%", as for fortune(6).
Example: plugin = "qotd", listen = "tcp://*:17", options = { quotes = "/usr/share/quotes" }
See also: daytime, message
"""

from __future__ import annotations

import random
import re
from typing import Annotated

from pydantic import Field

from superd.plugin import Options, ReadableFile, Request, Service, hookimpl

MAX_QUOTE_BYTES = 511  # "less than 512 characters" (RFC 865)

PROVERBS = (
    "A chain is no stronger than its weakest link.",
    "Many hands make light work.",
    "Measure twice, cut once.",
    "The best time to plant a tree was twenty years ago. The second best time is now.",
    "What is worth doing is worth doing well.",
)


class QotdOptions(Options):
    quotes: Annotated[
        ReadableFile | None,
        Field(description='file of quotes separated by lines of "%"; the default is proverbs'),
    ] = None


class Qotd(Service):
    """Sends a quote picked at random and closes. The file is read once, before confinement.

    Over udp the quote is no longer than the request. If no quote is short enough, the client gets
    no answer unless the entry says `amplify = true`.
    """

    name = "qotd"
    options_model = QotdOptions
    options: QotdOptions

    def prepare(self) -> None:
        file = self.options.quotes
        texts = read_quotes(file.read_bytes()) if file else [p.encode() for p in PROVERBS]
        self.quotes = [quote for quote in map(on_the_wire, texts) if len(quote) <= MAX_QUOTE_BYTES]
        if not self.quotes:
            raise ValueError(f"no quote of at most {MAX_QUOTE_BYTES - 2} bytes in {file}")

    def respond(self, request: Request) -> bytes:
        fitting = [quote for quote in self.quotes if len(quote) <= request.room]
        return random.choice(fitting or self.quotes)  # noqa: S311  nothing secret depends on it


def read_quotes(text: bytes) -> list[bytes]:
    """Return the quotes of a fortune file, without the lines of "%" between them."""
    found = re.split(rb"(?:^|(?<=\n))%[ \t\r]*(?:\n|$)", text)
    return [quote.strip() for quote in found if quote.strip()]


def on_the_wire(quote: bytes) -> bytes:
    """Return a quote with network line ends and without control characters."""
    lines = [re.sub(rb"[\x00-\x08\x0b-\x1f\x7f]", b"", line) for line in quote.splitlines()]
    return b"\r\n".join(lines) + b"\r\n"


@hookimpl
def superd_services() -> list[type[Service]]:
    return [Qotd]
