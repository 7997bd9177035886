"""Bytes of clients, and what the plugin metrics makes of them: requests, or nothing to answer."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from superd_metrics.requests import LONGEST, Malformed, Request, Requests

SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: superd:9110\r\nAccept: */*\r\n\r\n"


def one(data: bytes) -> Request | None:
    requests = Requests()
    requests.take(data)
    return requests.next()


def line(text: str) -> bytes:
    return f"{text}\r\nHost: x\r\n\r\n".encode("latin-1")


def taken(parts: list[bytes]) -> list[Request | int]:
    """Return all requests of a stream that comes in parts, and the status that ends it."""
    requests = Requests()
    found: list[Request | int] = []
    for part in parts:
        left = part
        while left:
            room = requests.room
            requests.take(left[:room])
            left = left[room:]
            try:
                while (request := requests.next()) is not None:
                    found.append(request)
            except Malformed as error:
                return [*found, error.status]
            assert 0 < requests.room <= LONGEST
    return found


@pytest.mark.parametrize(
    ("data", "request_"),
    [
        (SCRAPE, Request("GET", "/metrics", 1, persists=True)),
        (line("HEAD /readyz?verbose=1 HTTP/1.1"), Request("HEAD", "/readyz", 1, persists=True)),
        (b"GET /livez HTTP/1.0\r\n\r\n", Request("GET", "/livez", 0, persists=False)),
        (b"GET /livez HTTP/1.1\nHost: x\n\n", Request("GET", "/livez", 1, persists=True)),
        (b"\r\n\r\n" + SCRAPE, Request("GET", "/metrics", 1, persists=True)),
        (line("GET http://superd/livez HTTP/1.1"), Request("GET", "/livez", 1, persists=True)),
        (line("GET http://superd HTTP/1.1"), Request("GET", "/", 1, persists=True)),
        (line("OPTIONS * HTTP/1.1"), Request("OPTIONS", "*", 1, persists=True)),
    ],
)
def test_what_is_asked_for(data: bytes, request_: Request) -> None:
    assert one(data) == request_


@pytest.mark.parametrize(
    ("version", "header", "persists"),
    [
        (1, "Connection: close", False),
        (1, "Connection: TE, Close", False),
        (1, "connection:keep-alive", True),
        (0, "Connection: Keep-Alive", True),
        (1, "Content-Length: 0", True),
        (1, "Content-Length: 5", False),
        (1, "Transfer-Encoding: chunked", False),
    ],
)
def test_when_more_may_follow(version: int, header: str, persists: bool) -> None:
    request = one(f"GET / HTTP/1.{version}\r\nHost: x\r\n{header}\r\n\r\n".encode())
    assert request is not None
    assert request.persists is persists


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01",  # the beginning of TLS
        b"PRI * HTTP/2.0\r\n",
        b"GET /metrics\r\n",
        b"GET  / HTTP/1.1\r\n",
        b"GET / HTTP/1.1 \r\n",
        b"GET /\xff HTTP/1.1\r\n",
        b"G(T / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no host
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nnothing\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\n",
    ],
)
def test_what_is_no_request_is_known_at_once(data: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        one(data)
    assert caught.value.status == 400


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nA:"])
def test_a_request_without_end_is_refused_before_it_is_large(start: bytes) -> None:
    parts = [start, *[b"a" * 1000] * 20]
    assert taken(parts) == [431]


def test_a_header_of_blanks_takes_no_time_to_speak_of() -> None:
    before = time.process_time()
    with pytest.raises(Malformed):
        one(b"GET / HTTP/1.1\r\nA:" + b" " * (LONGEST - 100) + b"\0\r\n\r\n")
    assert time.process_time() - before < 5  # it took minutes where the rule went back and forth


@given(st.binary(max_size=2 * LONGEST), st.binary(max_size=300))
def test_any_bytes_are_requests_or_none(data: bytes, more: bytes) -> None:
    found = taken([data, SCRAPE + more])
    assert all(isinstance(item, Request) or item in (400, 431) for item in found)


PIECES = st.lists(
    st.sampled_from([
        b"GET /metrics HTTP/1.1\r\n", b"HEAD /livez HTTP/1.0\n", b"Host: x\r\n", b"\r\n", b"\n",
        b"Connection: close\r\n", b"Content-Length: 3\r\n", b"\r", b" ", b"x", b":", b"\0", SCRAPE,
    ]),
    max_size=40,
).map(b"".join)  # fmt: skip


@given(PIECES, st.data())
def test_it_does_not_matter_how_a_stream_is_cut(stream: bytes, data: st.DataObject) -> None:
    parts = []
    left = stream
    while left:
        size = data.draw(st.integers(1, len(left)))
        parts.append(left[:size])
        left = left[size:]
    assert taken(parts) == taken([stream])
