"""Several targets: who gets a client, and where one goes whose target fails."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.plugins.forward.places import Front, Place, fronts
from tests.support.clients import connect_and_receive, receive_to_end, reset
from tests.support.harness import EVENT_TIMEOUT, until

Made = dict[str, Front[Place]]

SERVICES = {
    "even": "$to",
    "weighted": 'to = ["$0", { address = "$1", weight = 3 }, "$2"]',
    "least": '$to, balance = "least-connections"',
    "source": '$to, balance = "source", retry-after = "1h"',
    "first": '$to, balance = "first", retry-after = "1h"',
    "logged": '$to, balance = "first", retry-after = "1h"',
    "again": '$to, balance = "first", retry-after = "50ms"',
    "gone": '$to, balance = "first", retry-after = "1h"',
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
    with fronts(tmp_path_factory.mktemp("superd"), SERVICES, Place) as made:
        yield made


def test_clients_come_in_turn(front: Made) -> None:
    assert front["even"].visits(6) == [0, 1, 2, 0, 1, 2]


def test_clients_come_by_weight(front: Made) -> None:
    for _ in range(3):
        assert Counter(front["weighted"].visits(5)) == {0: 1, 1: 3, 2: 1}


def test_the_fewest_connections_are_next(front: Made) -> None:
    least = front["least"]
    with contextlib.ExitStack() as stack:
        taken: dict[int, tuple[socket.socket, socket.socket]] = {}
        for _ in range(3):
            client = stack.enter_context(least.connect())
            number = least.asked()
            taken[number] = client, stack.enter_context(least.places[number].accept())
        assert sorted(taken) == [0, 1, 2]
        taken[1][1].close()
        assert taken[1][0].recv(1) == b""
        taken[1][0].close()
        until(lambda: least.superd.counts("least")["active"] == 2, "one to leave")
        client = stack.enter_context(least.connect())
        assert least.asked() == 1
        stack.enter_context(least.places[1].accept())
    least.superd.wait_until_idle("least")


def test_a_source_keeps_its_target_and_only_those_of_a_failed_one_move(
    front: Made,
) -> None:
    several = front["source"]
    sources = [f"127.0.1.{number}" for number in range(12)]
    before = {source: several.visits(1, source)[0] for source in sources}
    assert {source: several.visits(1, source)[0] for source in sources} == before
    lost = before[sources[0]]
    several.places[lost].refuse()
    during = {source: several.visits(1, source)[0] for source in sources}
    assert lost not in during.values()
    assert {s: n for s, n in during.items() if before[s] != lost} == {
        s: n for s, n in before.items() if n != lost
    }


def test_a_target_that_refuses_is_left_out_and_logged_once(front: Made) -> None:
    several = front["logged"]
    several.places[0].refuse()
    assert several.visits(3) == [1, 1, 1]
    several.places[0].serve()
    assert several.visits(1) == [1]
    text = f"warning: target {several.places[0]} is left out for 3600 s: Connection refused"
    assert several.lines("is left out") == several.lines(text) == 1


def test_it_is_tried_again_after_a_while(front: Made) -> None:
    several = front["again"]
    several.places[0].refuse()
    assert several.visits(1) == [1]
    several.places[0].serve()
    until(lambda: several.visits(1) == [0], "the first target")
    assert several.lines("is left out") == several.lines("serves again") == 1


def test_where_all_are_left_out_they_are_tried_anyway(front: Made) -> None:
    several = front["gone"]
    for place in several.places:
        place.refuse()
    for _ in range(2):
        assert connect_and_receive(several.superd.address("gone")) == (b"", "reset")
    told = several.events("closed", 2)
    assert {event["end"] for event in told} == {"unreachable"}
    assert told[0]["outcome"] == f"{several.places[2]}: Connection refused"
    several.places[1].serve()
    assert several.visits(2) == [1, 1]
    assert several.lines("is left out", 3) == 3
    assert several.lines(f"target {several.places[1]} serves again") == 1


def test_a_target_may_fail_a_few_times(front: Made) -> None:
    several = front["third"]
    several.places[0].refuse()
    assert several.visits(2) == [1, 1]
    several.places[0].serve()
    assert several.visits(1) == [0], "it is still asked"
    several.places[0].refuse()
    assert several.visits(2) == [1, 1]
    assert several.lines("is left out", 0) == 0, "they were not in a row"
    assert several.visits(1) == [1]
    several.places[0].serve()
    assert several.visits(1) == [1]
    assert several.lines("is left out") == 1


def turn_away(several: Front[Place], number: int) -> None:
    """Have a target accept, and reset at once."""
    assert several.asked() == number
    reset(several.places[number].accept())


def test_a_client_goes_on_where_a_target_accepts_and_resets(front: Made) -> None:
    several = front["resets"]
    for _ in range(3):
        with several.connect() as client:
            turn_away(several, 0)
            assert several.asked() == 1
            with several.places[1].accept() as taken:
                client.sendall(b"hello")
                assert taken.recv(100) == b"hello"
                taken.sendall(b"goodbye")
                assert client.recv(100) == b"goodbye"
        several.superd.wait_until_idle("resets")
    assert several.visits(2) == [1, 1]
    assert several.lines("is left out for 3600 s: Connection reset by peer") == 1
    assert several.lines("serves again", 0) == 0
    assert several.events("closed", 1)[0]["target"] == str(several.places[1])


def test_each_target_is_tried_once_for_a_client(front: Made) -> None:
    several = front["never"]
    with several.connect() as client:
        for number in range(3):
            turn_away(several, number)
        assert receive_to_end(client) == (b"", "reset")
    # the last reset may come before one knows that it was connected
    assert several.events("closed", 1)[0]["end"] in ("target-reset", "unreachable")
    assert select.select([place.sock for place in several.places], [], [], 0)[0] == []


def test_the_only_target_may_reset_too(front: Made) -> None:
    alone = front["alone"]
    with alone.connect() as client:
        turn_away(alone, 0)
        assert receive_to_end(client) == (b"", "reset")
    assert alone.events("closed", 1)[0]["end"] in ("target-reset", "unreachable")
    assert alone.visits(1) == [0]


@pytest.mark.parametrize("what", ["the client", "the target", "an end"])
def test_nothing_is_tried_twice_once_something_has_passed(front: Made, what: str) -> None:
    late = front["late"]
    with late.connect() as client:
        assert late.asked() == 0
        taken = late.places[0].accept()
        if what == "the client":
            client.sendall(b"hello")
            assert taken.recv(100) == b"hello"
        elif what == "the target":
            taken.sendall(b"hello")
            assert client.recv(100) == b"hello"
        else:
            taken.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b""
        reset(taken)
        assert receive_to_end(client)[0] == b""
    late.superd.wait_until_idle("late")
    assert select.select([late.places[1].sock], [], [], 0)[0] == []


@contextlib.contextmanager
def black_hole(front: Front[Place]) -> Iterator[None]:
    """Fill the backlog of the first target, so that the kernel drops whoever comes."""
    place = front.places[0]
    place.sock.listen(0)
    with socket.create_connection(place.address, EVENT_TIMEOUT):
        yield
        place.accept().close()
    place.sock.listen()


def test_what_a_client_sends_meanwhile_reaches_the_next_target_once(
    front: Made,
) -> None:
    slow = front["slow"]
    data = bytes(range(256)) * 2000
    with black_hole(slow), slow.connect() as client:
        client.sendall(data[:1000])
        with slow.places[1].accept() as taken:
            client.sendall(data[1000:])
            client.shutdown(socket.SHUT_WR)
            assert b"".join(iter(lambda: taken.recv(65536), b"")) == data
    assert slow.lines("is left out for 10 s: Connection timed out") == 1


def test_a_target_that_does_not_answer_delays_nobody_else(front: Made) -> None:
    hole, even = front["hole"], front["even"]
    with black_hole(hole), contextlib.ExitStack() as stack:
        started = time.monotonic()
        clients = [stack.enter_context(hole.connect()) for _ in range(20)]
        even.visits(10)
        assert time.monotonic() - started < 1, "they have not waited for the others"
        assert [receive_to_end(client) for client in clients] == [(b"", "reset")] * 20
        assert 1 <= time.monotonic() - started < 3
    told = hole.events("closed", 20)[-1]
    assert (told["end"], told["outcome"]) == (
        "unreachable",
        f"{hole.places[0]}: Connection timed out",
    )


def test_the_next_target_is_told_who_the_client_is_as_well(front: Made) -> None:
    several = front["proxied"]
    with several.connect() as client:
        turn_away(several, 0)
        with several.places[1].accept() as taken:
            host, port = client.getsockname()
            own = several.superd.address("proxied")[1]
            header = f"PROXY TCP4 {host} 127.0.0.1 {port} {own}\r\n".encode()
            assert taken.recv(200) == header
