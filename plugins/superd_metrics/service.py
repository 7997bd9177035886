"""The service: three pages, for whoever scrapes, and for whoever wants to know whether it serves.

Speaks as much of HTTP/1.1 as that takes: GET and HEAD, persistent connections, pipelining.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from pydantic import Field

from superd.plugin import Connection, Options, PositiveDuration, Service
from superd_metrics.requests import Malformed, Request, Requests

METRICS = "text/plain; version=0.0.4; charset=utf-8"
TEXT = "text/plain; charset=utf-8"
METHODS = ("GET", "HEAD")
PORTION = 64 * 1024  # bytes of an answer that a client has to have taken before it gets more


@dataclass(frozen=True)
class Page:
    """What a request is answered with."""

    status: HTTPStatus
    text: bytes
    kind: str = TEXT


class Stalled(Exception):
    """A client does not take what is sent to it."""


class MetricsOptions(Options):
    timeout: Annotated[
        PositiveDuration,
        Field(description="for the next request to come, and for a part of an answer to be taken"),
    ] = 5.0


class Metrics(Service):
    """Answers GET and HEAD of three pages.

    /metrics is what is measured of superd, in Prometheus' text format. /livez is answered with 200
    if this worker and superd's master turn. /readyz is answered with 200 if superd serves and each
    pool has a worker that is ready, and with 503 while it starts, drains or stops; a line says why.
    """

    name = "metrics"
    options_model = MetricsOptions
    options: MetricsOptions

    async def stream(self, conn: Connection) -> None:
        requests = Requests()
        try:
            while (request := await self._next(conn, requests)) is not None:
                page = await self._page(request)
                persists = request.persists and not self.drains
                text = b"" if request.method == "HEAD" else page.text
                await self._send(conn, _head(page, request.minor, persists=persists), text)
                if not persists:
                    return
        except Malformed as error:
            page = Page(HTTPStatus(error.status), f"{error}\n".encode())
            await conn.send(_head(page, persists=False) + page.text)
        except Stalled:
            conn.note("it took no more of the answer")
            conn.abort()

    async def _next(self, conn: Connection, requests: Requests) -> Request | None:
        """Return the next request; None where there is none any more, or none in time."""
        status, text = HTTPStatus.BAD_REQUEST, "the request has no end"
        try:
            async with asyncio.timeout(self.options.timeout):
                while (request := requests.next()) is None:
                    data = await conn.read(requests.room)
                    if not data:
                        break
                    requests.take(data)
                else:
                    return request
        except TimeoutError:
            status, text = HTTPStatus.REQUEST_TIMEOUT, "the request took too long"
        if requests.has_begun:
            raise Malformed(status, text)
        return None

    async def _page(self, request: Request) -> Page:
        pages = {"/metrics": self._metrics, "/livez": self._livez, "/readyz": self._readyz}
        if request.path not in pages:
            return Page(HTTPStatus.NOT_FOUND, f"there are {', '.join(pages)}\n".encode())
        if request.method not in METHODS:
            return Page(
                HTTPStatus.METHOD_NOT_ALLOWED, f"there is {' and '.join(METHODS)}\n".encode()
            )
        try:
            return await pages[request.path]()
        except TimeoutError as error:
            return Page(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n".encode())

    async def _metrics(self) -> Page:
        return Page(HTTPStatus.OK, await self.observe("metrics"), METRICS)

    async def _livez(self) -> Page:
        await self.observe("readiness")
        return Page(HTTPStatus.OK, b"superd is alive\n")

    async def _readyz(self) -> Page:
        if why_not := await self.observe("readiness"):
            return Page(HTTPStatus.SERVICE_UNAVAILABLE, why_not + b"\n")
        return Page(HTTPStatus.OK, b"superd is ready\n")

    async def _send(self, conn: Connection, head: bytes, text: bytes) -> None:
        """Send an answer as fast as the client takes it; Stalled where it takes nothing.

        In parts of what all clients of this moment share: each holds no more than one for itself.
        """
        for start in range(0, max(len(text), 1), PORTION):
            part = text[start : start + PORTION]
            try:
                async with asyncio.timeout(self.options.timeout):
                    await conn.send(part if start else head + part)
            except TimeoutError:
                raise Stalled from None


def _head(page: Page, minor: int = 1, *, persists: bool) -> bytes:
    """Return the head of an answer to a request of HTTP/1.`minor`."""
    lines = [
        f"HTTP/1.1 {page.status.value} {page.status.phrase}",
        time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT", time.gmtime()),
        f"Content-Type: {page.kind}",
        f"Content-Length: {len(page.text)}",
        "Cache-Control: no-store",
    ]
    if page.status is HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append(f"Allow: {', '.join(METHODS)}")
    if not persists:
        lines.append("Connection: close")
    elif minor == 0:
        lines.append("Connection: keep-alive")
    return "\r\n".join([*lines, "", ""]).encode("ascii")
