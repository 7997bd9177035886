"""Several targets: which gets a client, and which is next when a target fails."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.plugins.forward.places import Front, TcpTarget, fronts
from tests.support.clients import connect_and_receive, receive_to_end, reset
from tests.support.harness import EVENT_TIMEOUT, until

Made = dict[str, Front[TcpTarget]]

SERVICES = {
    "even": "$to",
    "weighted": 'to = ["$0", { address = "$1", weight = 3 }, "$2"]',
    "least": '$to, balance = "least-connections"',
    "source": '$to, balance = "source", retry-after = "1h"',
    "first": '$to, balance = "first", retry-after = "1h"',
    "logged": '$to, balance = "first", retry-after = "1h"',
    "again": '$to, balance = "first", retry-after = "50ms"',
    "all-left-out": '$to, balance = "first", retry-after = "1h"',
    "third": '$to, balance = "first", retry-after = "1h", fail-after = 3',
    "resets": '$to, balance = "first", retry-after = "1h", fail-after = 3',
    "never": '$to, balance = "first", fail-after = 0',
    "alone": 'to = "$0"',
    "late": 'to = ["$0", "$1"], balance = "first"',
    "slow": 'to = ["$0", "$1"], balance = "first", connect-timeout = "200ms"',
    "hole": 'to = "$0", connect-timeout = "1s"',
    "proxied": 'to = ["$0", "$1"], balance = "first", proxy-protocol = "v1"',
}


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with fronts(tmp_path_factory.mktemp("superd"), SERVICES, TcpTarget) as made:
        yield made


def test_targets_take_turns(front: Made) -> None:
    assert front["even"].serve_clients(6) == [0, 1, 2, 0, 1, 2]


def test_targets_get_clients_by_weight(front: Made) -> None:
    for _ in range(3):
        assert Counter(front["weighted"].serve_clients(5)) == {0: 1, 1: 3, 2: 1}


def test_the_target_with_the_fewest_connections_is_next(front: Made) -> None:
    least = front["least"]
    with contextlib.ExitStack() as stack:
        server: dict[int, tuple[socket.socket, socket.socket]] = {}
        for _ in range(3):
            client = stack.enter_context(least.connect())
            number = least.next_target()
            server[number] = client, stack.enter_context(least.targets[number].accept())
        assert sorted(server) == [0, 1, 2]
        server[1][1].close()
        assert server[1][0].recv(1) == b""
        server[1][0].close()
        until(lambda: least.superd.counts("least")["active"] == 2, "one client to close")
        client = stack.enter_context(least.connect())
        assert least.next_target() == 1
        stack.enter_context(least.targets[1].accept())
    least.superd.wait_until_idle("least")


def test_a_source_keeps_its_target_until_that_fails(
    front: Made,
) -> None:
    several = front["source"]
    sources = [f"127.0.1.{number}" for number in range(12)]
    before = {source: several.serve_clients(1, source)[0] for source in sources}
    assert {source: several.serve_clients(1, source)[0] for source in sources} == before
    lost = before[sources[0]]
    several.targets[lost].refuse()
    during = {source: several.serve_clients(1, source)[0] for source in sources}
    assert lost not in during.values()
    assert {s: n for s, n in during.items() if before[s] != lost} == {
        s: n for s, n in before.items() if n != lost
    }


def test_a_target_that_refuses_is_left_out_and_logged_once(front: Made) -> None:
    several = front["logged"]
    several.targets[0].refuse()
    assert several.serve_clients(3) == [1, 1, 1]
    several.targets[0].serve()
    assert several.serve_clients(1) == [1]
    text = f"warning: target {several.targets[0]} is left out for 3600 s: Connection refused"
    assert several.lines("is left out") == several.lines(text) == 1


def test_a_target_is_tried_again_after_retry_after(front: Made) -> None:
    several = front["again"]
    several.targets[0].refuse()
    assert several.serve_clients(1) == [1]
    several.targets[0].serve()
    until(lambda: several.serve_clients(1) == [0], "the first target")
    assert several.lines("is left out") == several.lines("serves again") == 1


def test_targets_are_tried_if_all_are_left_out(front: Made) -> None:
    several = front["all-left-out"]
    for target in several.targets:
        target.refuse()
    for _ in range(2):
        assert connect_and_receive(several.superd.address("all-left-out")) == (b"", "reset")
    records = several.events("closed", 2)
    assert {event["end"] for event in records} == {"unreachable"}
    assert records[0]["outcome"] == f"{several.targets[2]}: Connection refused"
    several.targets[1].serve()
    assert several.serve_clients(2) == [1, 1]
    assert several.lines("is left out", 3) == 3
    assert several.lines(f"target {several.targets[1]} serves again") == 1


def test_a_target_is_left_out_after_fail_after_failures_in_a_row(front: Made) -> None:
    several = front["third"]
    several.targets[0].refuse()
    assert several.serve_clients(2) == [1, 1]
    several.targets[0].serve()
    assert several.serve_clients(1) == [0], "it still gets clients"
    several.targets[0].refuse()
    assert several.serve_clients(2) == [1, 1]
    assert several.lines("is left out", 0) == 0, "the failures were not in a row"
    assert several.serve_clients(1) == [1]
    several.targets[0].serve()
    assert several.serve_clients(1) == [1]
    assert several.lines("is left out") == 1


def accept_and_reset(several: Front[TcpTarget], number: int) -> None:
    """Accept at a target, and reset immediately."""
    assert several.next_target() == number
    reset(several.targets[number].accept())


def test_a_client_gets_the_next_target_if_one_accepts_and_resets(front: Made) -> None:
    several = front["resets"]
    for _ in range(3):
        with several.connect() as client:
            accept_and_reset(several, 0)
            assert several.next_target() == 1
            with several.targets[1].accept() as server:
                client.sendall(b"hello")
                assert server.recv(100) == b"hello"
                server.sendall(b"goodbye")
                assert client.recv(100) == b"goodbye"
        several.superd.wait_until_idle("resets")
    assert several.serve_clients(2) == [1, 1]
    assert several.lines("is left out for 3600 s: Connection reset by peer") == 1
    assert several.lines("serves again", 0) == 0
    assert several.events("closed", 1)[0]["target"] == str(several.targets[1])


def test_each_target_is_tried_once_for_a_client(front: Made) -> None:
    several = front["never"]
    with several.connect() as client:
        for number in range(3):
            accept_and_reset(several, number)
        assert receive_to_end(client) == (b"", "reset")
    # the last reset may arrive before the connection is noticed
    assert several.events("closed", 1)[0]["end"] in ("target-reset", "unreachable")
    assert select.select([target.sock for target in several.targets], [], [], 0)[0] == []


def test_a_reset_of_the_only_target_resets_the_client(front: Made) -> None:
    alone = front["alone"]
    with alone.connect() as client:
        accept_and_reset(alone, 0)
        assert receive_to_end(client) == (b"", "reset")
    assert alone.events("closed", 1)[0]["end"] in ("target-reset", "unreachable")
    assert alone.serve_clients(1) == [0]


@pytest.mark.parametrize("what", ["the client", "the target", "an end"])
def test_no_other_target_is_tried_after_the_first_byte_or_end(front: Made, what: str) -> None:
    late = front["late"]
    with late.connect() as client:
        assert late.next_target() == 0
        server = late.targets[0].accept()
        if what == "the client":
            client.sendall(b"hello")
            assert server.recv(100) == b"hello"
        elif what == "the target":
            server.sendall(b"hello")
            assert client.recv(100) == b"hello"
        else:
            server.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b""
        reset(server)
        assert receive_to_end(client)[0] == b""
    late.superd.wait_until_idle("late")
    assert select.select([late.targets[1].sock], [], [], 0)[0] == []


@contextlib.contextmanager
def black_hole(front: Front[TcpTarget]) -> Iterator[None]:
    """Fill the backlog of the first target, so that the kernel drops new connections."""
    target = front.targets[0]
    target.sock.listen(0)
    with socket.create_connection(target.address, EVENT_TIMEOUT):
        yield
        target.accept().close()
    target.sock.listen()


def test_data_sent_while_connecting_reaches_the_next_target_once(
    front: Made,
) -> None:
    slow = front["slow"]
    data = bytes(range(256)) * 2000
    with black_hole(slow), slow.connect() as client:
        client.sendall(data[:1000])
        with slow.targets[1].accept() as server:
            client.sendall(data[1000:])
            client.shutdown(socket.SHUT_WR)
            assert b"".join(iter(lambda: server.recv(65536), b"")) == data
    assert slow.lines("is left out for 10 s: Connection timed out") == 1


def test_a_target_that_does_not_answer_delays_no_other_client(front: Made) -> None:
    hole, even = front["hole"], front["even"]
    with black_hole(hole), contextlib.ExitStack() as stack:
        started = time.monotonic()
        clients = [stack.enter_context(hole.connect()) for _ in range(20)]
        even.serve_clients(10)
        assert time.monotonic() - started < 1, "these clients did not wait for the others"
        assert [receive_to_end(client) for client in clients] == [(b"", "reset")] * 20
        assert 1 <= time.monotonic() - started < 3
    record = hole.events("closed", 20)[-1]
    assert (record["end"], record["outcome"]) == (
        "unreachable",
        f"{hole.targets[0]}: Connection timed out",
    )


def test_the_next_target_gets_the_header_as_well(front: Made) -> None:
    several = front["proxied"]
    with several.connect() as client:
        accept_and_reset(several, 0)
        with several.targets[1].accept() as server:
            host, port = client.getsockname()
            own = several.superd.address("proxied")[1]
            header = f"PROXY TCP4 {host} 127.0.0.1 {port} {own}\r\n".encode()
            assert server.recv(200) == header
