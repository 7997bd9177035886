"""The plugin metrics serves valid HTTP requests, and refuses malformed ones with one answer."""

from __future__ import annotations

import contextlib
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superd.process.procfs import usage_of
from tests.support.harness import Superd, exchange, until
from tests.support.programs import output
from tests.support.scrapes import SERVICE, get_page, persistent, read_responses, request_page

TOML = f"""
[daemon]
loop = "{{loop}}"
{SERVICE}
[service.hasty]
plugin = "metrics"
listen = "tcp://127.0.0.1:0"
options = {{ timeout = "300ms" }}
"""

IDS = (
    "tls", "old", "no-host", "two-blanks", "target", "method", "two-hosts", "blank-in-name",
    "no-colon", "nul", "lone-cr", "negative-length", "two-lengths", "blanks", "long", "no-end",
    "body", "chunks",
)  # fmt: skip
NO_REQUEST = b"this is not a request of HTTP/1.1\n"
TOO_LONG = b"a request has at most 8192 bytes\n"
ONLY_GET = b"this page takes GET and HEAD\n"
ALIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
MEMORY_LIMIT_BYTES = 20 << 20  # far below the size of all answers that are asked for


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/livez", 200, "superd is alive\n"),
        ("GET", "/readyz?verbose", 200, "superd is ready\n"),
        ("HEAD", "/readyz", 200, ""),
        ("HEAD", "/metrics", 200, ""),
        ("GET", "/", 404, "no such page; there are /metrics, /livez, /readyz\n"),
        ("POST", "/metrics", 405, "this page takes GET and HEAD\n"),
        ("DELETE", "/other", 404, "no such page; there are /metrics, /livez, /readyz\n"),
        ("GET", "//[/livez", 404, "no such page; there are /metrics, /livez, /readyz\n"),
    ],
)
def test_only_the_three_pages_are_served(
    served: Superd, method: str, path: str, status: int, text: str
) -> None:
    assert get_page(served, path, method) == (status, text)


def test_headers_give_type_length_and_allowed_methods(served: Superd) -> None:
    with persistent(served) as connection:
        for method in ("GET", "HEAD"):
            connection.request(method, "/metrics")
            with connection.getresponse() as response:
                kind = "text/plain; version=0.0.4; charset=utf-8"
                assert response.headers["Content-Type"] == kind
                length = int(response.headers["Content-Length"])
                assert len(response.read()) == (length if method == "GET" else 0)
                assert length > 1000
        connection.request("PUT", "/livez")
        with connection.getresponse() as response:
            assert response.headers["Allow"] == "GET, HEAD"


def test_one_connection_serves_many_requests(served: Superd) -> None:
    before = served.counts("metrics")["accepted"]
    with persistent(served) as connection:
        for path in ("/livez", "/metrics", "/nothing", "/readyz") * 5:
            status, _ = request_page(connection, path)
            assert status == (404 if path == "/nothing" else 200)
    assert served.counts("metrics")["accepted"] == before + 1


def test_pipelined_requests_are_answered_in_order(served: Superd) -> None:
    with served.connect("metrics") as client:
        client.sendall(ALIVE * 20 + LAST + ALIVE)
        found = list(read_responses(client))
    assert found == [(200, b"superd is alive\n")] * 20 + [(200, b"superd is ready\n")]


def test_a_request_in_many_segments_is_answered_once(served: Superd) -> None:
    with served.connect("metrics") as client:
        for byte in LAST:
            client.sendall(bytes([byte]))
        assert list(read_responses(client)) == [(200, b"superd is ready\n")]


def test_a_client_of_http_1_0_is_answered_and_closed(served: Superd) -> None:
    answer = exchange(served.connect("metrics"), b"GET /livez HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00", 400),
        (b"GET /livez\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n\r\n" + ALIVE, 400),
        (b"GET  /livez HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"G(T /livez HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nnothing\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nA:" + b" " * 60 + b"\0\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nX: " + b"x" * 100_000, 431),
        (b"a" * 20_000, 431),
        (b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 33\r\n\r\n" + ALIVE, 405),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + ALIVE, 200),
    ],
    ids=IDS,
)
def test_an_ambiguous_request_gets_one_answer_and_the_connection_is_closed(
    served: Superd, data: bytes, status: int
) -> None:
    with served.connect("metrics") as client:
        client.sendall(data)
        [(code, text)] = read_responses(client)
    assert code == status
    assert code < 400 or text in (NO_REQUEST, TOO_LONG, ONLY_GET)


def test_an_incomplete_request_is_answered_at_its_end_or_after_the_timeout(served: Superd) -> None:
    answer = exchange(served.connect("metrics"), ALIVE[:20])
    assert answer.startswith(b"HTTP/1.1 400 ")
    with served.connect("hasty") as client:
        client.sendall(ALIVE[:20])
        assert [code for code, _ in read_responses(client)] == [408]
    with served.connect("hasty") as silent:
        assert silent.recv(1) == b""


def test_a_client_that_reads_no_answer_is_reset_and_costs_no_memory(served: Superd) -> None:
    [worker] = served.workers()
    before = usage_of(worker)
    assert before is not None
    scrapes = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 10_000
    with served.connect("hasty") as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(ConnectionError):
            while True:
                client.sendall(scrapes)
    served.wait_until_idle("hasty")
    after = usage_of(worker)
    assert after is not None
    assert after.memory - before.memory < MEMORY_LIMIT_BYTES
    assert served.workers() == [worker]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=200) | st.sampled_from([ALIVE, b"GET ", b"\r\n"]), max_size=5))
def test_a_hostile_client_harms_no_worker(served: Superd, parts: list[bytes]) -> None:
    before = served.workers()
    with served.connect("metrics") as client:
        client.sendall(b"".join(parts))
        client.shutdown(socket.SHUT_WR)
        assert all(code in (200, 400, 404, 405) for code, _ in read_responses(client))
    assert served.workers() == before
    assert served.counts("metrics")["errors"] == 0


def test_a_run_of_blanks_is_refused_before_it_is_parsed(served: Superd) -> None:
    with served.connect("metrics") as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nA:" + b" " * 50)
        client.sendall(b"\t" * 50)
        assert list(read_responses(client)) == [(400, b"a header has too many blanks\n")]


@pytest.mark.parametrize(
    ("head", "persists"),
    [
        ("GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close", False),
        ("GET /livez HTTP/1.1\r\nHost: x\r\nConnection: TE, Close", False),
        ("GET /livez HTTP/1.1\r\nHost: x\r\nconnection:keep-alive", True),
        ("GET /livez HTTP/1.1\nHost: x\nContent-Length: 0", True),
        ("GET http://superd/livez HTTP/1.1\r\nHost: x", True),
        ("\r\nGET /livez HTTP/1.1\r\nHost: x", True),
        ("GET /livez HTTP/1.0", False),
    ],
)
def test_a_connection_persists_if_the_client_wants_it(
    served: Superd, head: str, persists: bool
) -> None:
    with served.connect("metrics") as client:
        client.sendall(head.encode() + b"\r\n\r\n")
        first = read_responses(client)
        assert next(first) == (200, b"superd is alive\n")
        if persists:
            client.sendall(LAST)
        assert list(first) == ([(200, b"superd is ready\n")] if persists else [])


@pytest.mark.tool("curl")
def test_curl_accepts_the_answers(served: Superd) -> None:
    host, port = served.address("metrics")
    url = f"http://{host}:{port}"
    assert output("curl", "-sSf", f"{url}/livez", f"{url}/readyz").split(b"\n")[:2] == [
        b"superd is alive",
        b"superd is ready",
    ]
    assert output("curl", "-sSfI", f"{url}/metrics").startswith(b"HTTP/1.1 200 OK\r\n")
    assert output("curl", "-sS", "-o", "-", "-w", "%{http_code}", "-d", "x", url)[-3:] == b"404"


def test_answered_requests_count_no_errors(served: Superd) -> None:
    until(lambda: served.counts("metrics")["active"] == 0, "clients of other tests to close")
    assert served.counts("metrics")["errors"] == served.counts("hasty")["errors"] == 0
    assert "error" not in served.log()
