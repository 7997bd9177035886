"""Requests of HTTP/1, as far as somebody who only asks for pages needs it (RFC 9112).

Knows no connection: bytes go in and requests come out. Holds no more than one request may have.
Raises Malformed for what is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST = 8 * 1024  # bytes of a request, its headers and all
NO_REQUEST = "this is no request of HTTP/1"

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(%s) ([!-~]+) HTTP/1\.([0-9])" % _TOKEN)
_HEADER = re.compile(rb"(%s):([\t -~\x80-\xff]*)" % _TOKEN)
_NOT_IN_A_LINE = re.compile(rb"[^ -~\r]")
_END = re.compile(rb"\r?\n\r?\n")
_AUTHORITY = re.compile(r"https?://[^/?]+", re.IGNORECASE)


class Malformed(ValueError):
    """A client sent what is no request, or more than one may have; `status` answers it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Request:
    """What is asked for; `path` is without its query. `persists` says that more may follow."""

    method: str
    path: str
    minor: int  # of the version of HTTP
    persists: bool


class Requests:
    """Takes a client's bytes as they come, and gives them back as requests."""

    def __init__(self) -> None:
        self._data = b""

    @property
    def room(self) -> int:
        """How many bytes may be taken in until it can be told whether there is a request."""
        return LONGEST - len(self._data)

    @property
    def has_begun(self) -> bool:
        """Whether a part of a request has come."""
        return bool(self._data)

    def take(self, data: bytes) -> None:
        self._data += data

    def next(self) -> Request | None:
        """Return the next request; None where some of it is still to come."""
        self._data = self._data.lstrip(b"\r\n")  # clients of old send an empty line too much
        end = _END.search(self._data)
        if end is None:
            self._check_beginning()
            return None
        head, self._data = self._data[: end.start()], self._data[end.end() :]
        return _request(head)

    def _check_beginning(self) -> None:
        """Tell at once what will never be a request: such a client may wait for an answer."""
        line, feed, _ = self._data.partition(b"\n")
        if feed and not _REQUEST_LINE.fullmatch(line.removesuffix(b"\r")):
            raise Malformed(400, NO_REQUEST)
        if _NOT_IN_A_LINE.search(line):
            raise Malformed(400, NO_REQUEST)
        if self.room <= 0:
            raise Malformed(431, f"a request has at most {LONGEST} bytes")


def _request(head: bytes) -> Request:
    first, *lines = re.split(rb"\r?\n", head)
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise Malformed(400, NO_REQUEST)
    minor = int(line[3])
    headers = _headers(lines)
    hosts = headers.get("host", [])
    if len(hosts) > 1 or (minor and not hosts):
        raise Malformed(400, "a request has one Host")
    length = headers.get("content-length", ["0"])
    if not all(re.fullmatch("[0-9]+", one) for one in length):
        raise Malformed(400, "Content-Length is a number")
    has_body = any(one.strip("0") for one in length) or "transfer-encoding" in headers
    wishes = {
        word.strip().lower() for one in headers.get("connection", []) for word in one.split(",")
    }
    persists = "close" not in wishes if minor else "keep-alive" in wishes
    # a body is not read, so nobody can tell where the next request would start
    return Request(line[1].decode(), _path(line[2].decode()), minor, persists and not has_body)


def _headers(lines: list[bytes]) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise Malformed(400, "a header is a name, a colon and a value, in one line")
        headers.setdefault(header[1].decode().lower(), []).append(
            header[2].decode("latin-1").strip()
        )
    return headers


def _path(target: str) -> str:
    """Return the path of a target, which a client may write with the host before it."""
    path = _AUTHORITY.sub("", target, count=1) if not target.startswith("/") else target
    return path.partition("?")[0] or "/"
