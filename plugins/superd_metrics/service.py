"""The service: three pages, for Prometheus and for health checks.

Runs in a worker, on the loop. Speaks HTTP/1.1 by h11: GET and HEAD, persistent connections,
pipelining. Never reads the body of a request: the connection is closed after the answer. Answers
hold nothing that a client sent.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

import h11
from pydantic import Field

from superd.plugin import Connection, Options, PositiveDuration, Service

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TEXT_TYPE = "text/plain; charset=utf-8"
METHODS = ("GET", "HEAD")
MAX_REQUEST_BYTES = 8 * 1024
# h11 splits a header by an expression that takes quadratic time in a run of blanks: 8 KiB of them
# block the worker's loop for a fifth of a second
RUN_OF_BLANKS = re.compile(rb"[ \t]{64}")
NO_REQUEST = "this is not a request of HTTP/1.1"
TOO_LONG = f"a request has at most {MAX_REQUEST_BYTES} bytes"
PORTION_BYTES = 64 * 1024  # of an answer; the client has to take one before it gets the next
AUTHORITY = re.compile(r"https?://[^/?]+", re.IGNORECASE)


@dataclass(frozen=True)
class Page:
    """The answer to a request."""

    status: HTTPStatus
    text: bytes
    content_type: str = TEXT_TYPE


class NotARequest(ValueError):
    """A client sent something other than a request; `page` is the answer."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.page = Page(status, f"{text}\n".encode())


class Stalled(Exception):
    """A client does not take the answer."""


class MetricsOptions(Options):
    timeout: Annotated[
        PositiveDuration,
        Field(description="for the next request to arrive, and for a part of an answer to be read"),
    ] = 5.0


class Metrics(Service):
    """Answers GET and HEAD of three pages.

    /metrics has superd's metrics, in Prometheus' text format. /livez answers 200 if this worker and
    the master respond. /readyz answers 200 if superd serves on all addresses and each pool has a
    worker that is ready, and 503 otherwise; a line says why.
    """

    name = "metrics"
    options_model = MetricsOptions
    options: MetricsOptions

    async def stream(self, conn: Connection) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST_BYTES)
        try:
            while (request := await self._next(conn, http)) is not None:
                page = await self._page(request)
                has_text = request.method != b"HEAD"
                is_last = _has_body(http) or self.drains
                await self._send(conn, http, page, has_text=has_text, is_last=is_last)
                if http.our_state is not h11.DONE:
                    return
                http.start_next_cycle()
        except NotARequest as error:
            await self._send(conn, http, error.page)
        except Stalled:
            conn.note("the client did not take the answer")
            conn.abort()

    async def _next(self, conn: Connection, http: h11.Connection) -> h11.Request | None:
        """Return the next request; None at the end of the stream, or if none arrives in time."""
        problem = HTTPStatus.BAD_REQUEST, "the request has no end"
        try:
            async with asyncio.timeout(self.options.timeout):
                while (event := http.next_event()) is h11.NEED_DATA:
                    data = await conn.read(MAX_REQUEST_BYTES)
                    if not data:
                        break
                    if not http.trailing_data[0] and not (data := data.lstrip(b"\r\n")):
                        continue  # empty lines before a request are ignored (RFC 9112, 2.2)
                    if RUN_OF_BLANKS.search(http.trailing_data[0] + data):
                        raise NotARequest(HTTPStatus.BAD_REQUEST, "a header has too many blanks")
                    http.receive_data(data)
        except TimeoutError:
            problem = HTTPStatus.REQUEST_TIMEOUT, "the request took too long"
        except h11.RemoteProtocolError as error:
            status = HTTPStatus(error.error_status_hint)
            is_long = status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise NotARequest(status, TOO_LONG if is_long else NO_REQUEST) from None
        else:
            if isinstance(event, h11.Request):
                return event
        if http.trailing_data[0]:
            raise NotARequest(*problem)
        return None

    async def _page(self, request: h11.Request) -> Page:
        pages = {"/metrics": self._metrics, "/livez": self._livez, "/readyz": self._readyz}
        path = _path(request.target.decode("ascii"))
        if path not in pages:
            return Page(
                HTTPStatus.NOT_FOUND, f"no such page; there are {', '.join(pages)}\n".encode()
            )
        if request.method.decode("ascii") not in METHODS:
            return Page(
                HTTPStatus.METHOD_NOT_ALLOWED, f"this page takes {' and '.join(METHODS)}\n".encode()
            )
        try:
            return await pages[path]()
        except TimeoutError as error:
            return Page(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n".encode())

    async def _metrics(self) -> Page:
        return Page(HTTPStatus.OK, await self.observe("metrics"), METRICS_TYPE)

    async def _livez(self) -> Page:
        await self.observe("readiness")
        return Page(HTTPStatus.OK, b"superd is alive\n")

    async def _readyz(self) -> Page:
        if problems := await self.observe("readiness"):
            return Page(HTTPStatus.SERVICE_UNAVAILABLE, problems + b"\n")
        return Page(HTTPStatus.OK, b"superd is ready\n")

    async def _send(
        self,
        conn: Connection,
        http: h11.Connection,
        page: Page,
        *,
        has_text: bool = True,
        is_last: bool = True,
    ) -> None:
        """Send an answer as fast as the client reads. Raises Stalled if it stops reading.

        The text is sent in parts. All clients of this moment share the text, and each has a copy of
        one part only.
        """
        data = http.send(_head(page, is_last=is_last)) or b""
        text = page.text if has_text else b""
        for start in range(0, max(len(text), 1), PORTION_BYTES):
            if part := text[start : start + PORTION_BYTES]:
                data += http.send(h11.Data(data=part)) or b""
            try:
                async with asyncio.timeout(self.options.timeout):
                    await conn.send(data)
            except TimeoutError:
                raise Stalled from None
            data = b""
        http.send(h11.EndOfMessage())


def _path(target: str) -> str:
    """Return the path of a target in origin form or absolute form (RFC 9112, 3.2)."""
    path = target if target.startswith("/") else AUTHORITY.sub("", target, count=1)
    return path.partition("?")[0] or "/"


def _has_body(http: h11.Connection) -> bool:
    """Return whether a body follows the request that was read last."""
    try:
        return type(http.next_event()) is not h11.EndOfMessage
    except h11.RemoteProtocolError:
        return True


def _head(page: Page, *, is_last: bool) -> h11.Response:
    headers = [
        ("Date", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())),
        ("Content-Type", page.content_type),
        ("Content-Length", str(len(page.text))),
        ("Cache-Control", "no-store"),
    ]
    if page.status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append(("Allow", ", ".join(METHODS)))
    if is_last:
        headers.append(("Connection", "close"))
    return h11.Response(
        status_code=page.status.value, headers=headers, reason=page.status.phrase.encode()
    )
