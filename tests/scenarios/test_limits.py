"""Limits with real clients: never exceeded, and in the way for no longer than they have to be."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.conftest import Start
from tests.support.clients import (
    connect_and_receive,
    connect_tcp,
    connect_unix,
    is_open,
    receive_and_close,
    receive_to_end,
)
from tests.support.harness import EVENT_TIMEOUT, Address, Superd, exchange, until

PLACES = 50


@contextlib.contextmanager
def waiting_clients(address: Address, number: int) -> Iterator[set[socket.socket]]:
    """Connect clients that each say something, and wait to be answered."""
    with contextlib.ExitStack() as stack:
        clients = {stack.enter_context(connect_tcp(address)) for _ in range(number)}
        for client in clients:
            client.sendall(b"x")
        yield clients


def answered(clients: set[socket.socket]) -> set[socket.socket]:
    """Return the clients that have been answered, which takes one at least."""
    poll = select.poll()
    by_descriptor = {client.fileno(): client for client in clients}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    ready = poll.poll(EVENT_TIMEOUT * 1000)
    assert ready, "nobody is answered any more"
    return {by_descriptor[descriptor] for descriptor, _ in ready}


def race(served: Superd, service: str, clients: set[socket.socket], places: int) -> None:
    """Have all clients served, and see that there are never more inside than there are places."""
    inside: set[socket.socket] = set()
    outside = set(clients)
    fullest = 0
    while outside:
        inside |= answered(outside)
        outside -= inside
        fullest = max(fullest, len(inside))
        assert len(inside) <= places
        assert served.counts(service)["active"] <= places
        if len(inside) == places or not outside:
            for client in inside:
                client.close()
            inside.clear()
    assert fullest == min(places, len(clients))


RACE = """
[daemon]
workers = 4

[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
max-connections = 50
"""


def test_a_thousand_clients_of_four_workers_never_get_more_places_than_there_are(
    start_superd: Start,
) -> None:
    served = start_superd(RACE)
    with waiting_clients(served.address("echo"), 1000) as clients:
        race(served, "echo", clients, PLACES)
    served.wait_until_idle("echo")
    with waiting_clients(served.address("echo"), PLACES) as again:
        race(served, "echo", again, PLACES)
    assert served.counts("echo")["accepted"] == 1000 + PLACES


def test_a_worker_that_dies_gives_its_places_back(start_superd: Start) -> None:
    served = start_superd(RACE)
    with waiting_clients(served.address("echo"), PLACES) as clients:
        inside: set[socket.socket] = set()
        while len(inside) < PLACES:
            inside |= answered(clients - inside)
        for worker in served.workers():
            os.kill(worker, signal.SIGKILL)
        for client in clients:
            assert receive_to_end(client)[1] in ("fin", "reset")
        with waiting_clients(served.address("echo"), PLACES + 30) as successors:
            race(served, "echo", successors, PLACES)


def test_clients_at_a_limit_wait_and_are_served_as_soon_as_there_is_room(
    start_superd: Start,
) -> None:
    served = start_superd(
        """
        [service.echo]
        plugin = "echo"
        listen = ["tcp://127.0.0.1:0", "tcp://127.0.0.1:0"]
        max-connections = 1
        """
    )
    first, second = served.addresses("echo")
    with connect_tcp(first) as inside, connect_tcp(second) as outside:
        inside.sendall(b"in")
        assert inside.recv(10) == b"in"
        outside.sendall(b"out")
        until(lambda: served.counts("echo")["waits"], "somebody to be kept waiting")
        assert is_open(outside)
        assert served.counts("echo")["accepted"] == 1  # the kernel has the other one
        inside.close()
        assert outside.recv(10) == b"out"


TOML = """
[service.rejects]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
max-connections = 1
on-limit = "reject"
banner-refused = "all lines are busy\\r\\n"

[service.holds]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
max-connections = 1
on-limit = "tarpit"

[service.few]
plugin = "echo"
listen = ["tcp://127.0.0.1:0", "unix:///{directory}/few"]
max-per-source = 2

[service.slow]
plugin = "daytime"
listen = "tcp://127.0.0.1:0"
rate = "1/min"
burst = 3
on-limit = "reject"

[service.fair]
plugin = "daytime"
listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]
rate-per-source = "1/min"
burst-per-source = 2
amplify = true

[service.calm]
plugin = "daytime"
listen = "tcp://127.0.0.1:0"
max-load = 1000000

[service.other]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
"""


@contextlib.contextmanager
def one_inside(served: Superd, service: str) -> Iterator[socket.socket]:
    with served.connect(service) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        yield client
    served.wait_until_idle(service)


def test_who_is_rejected_is_told_why_even_if_it_has_sent_something(served: Superd) -> None:
    with one_inside(served, "rejects"):
        for _ in range(30):
            assert connect_and_receive(served.address("rejects"), b"unread") == (
                b"all lines are busy\r\n",
                "fin",
            )
        assert served.counts("rejects")["refused-max-connections"] == 30
    assert exchange(served.connect("rejects"), b"now") == b"now"


def test_who_is_held_hears_nothing_and_takes_no_place(served: Superd) -> None:
    with one_inside(served, "holds") as inside, served.connect("holds") as held:
        held.sendall(b"hello?")
        until(lambda: served.counts("holds")["refused-max-connections"] == 1, "it to be held")
        assert is_open(held)
        inside.sendall(b"y")
        assert inside.recv(1) == b"y"
        assert served.counts("holds")["active"] == 1
    with one_inside(served, "holds"):
        pass


TIGHT = """
[defaults]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
rlimits = { nofile = 64 }

[service.holds]
max-per-source = 1
on-limit = "tarpit"

[service.other]
"""


def test_a_crowd_that_is_held_takes_a_quarter_of_the_descriptors_and_gives_way(
    start_superd: Start,
) -> None:
    served = start_superd(TIGHT)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(served.connect("holds")) for _ in range(101)]
        until(lambda: served.counts("holds")["refused-max-per-source"] == 100, "them to be held")
        until(lambda: sum(map(is_open, held)) == 1 + 64 // 4, "most of them to be let go")
        for number in range(60):  # the last of them finds no descriptor, but in the tarpit
            client = stack.enter_context(served.connect("other", f"127.0.2.{number + 1}"))
            client.sendall(b"x")
        until(lambda: sum(map(is_open, held)) == 1, "all to be let go")


def test_each_source_has_places_of_its_own(served: Superd) -> None:
    with contextlib.ExitStack() as stack:
        for source in ("127.0.0.2", "127.0.0.3", "127.0.0.4"):
            for _ in range(2):
                client = stack.enter_context(served.connect("few", source))
                client.sendall(b"x")
                assert client.recv(1) == b"x"
            with served.connect("few", source) as third:
                assert receive_to_end(third) == (b"", "fin")
        assert served.counts("few")["refused-max-per-source"] == 3
    served.wait_until_idle("few")
    assert exchange(served.connect("few", "127.0.0.2"), b"again") == b"again"


def test_the_peers_of_a_unix_socket_are_sources_by_their_user(served: Superd) -> None:
    with contextlib.ExitStack() as stack:
        path = served.directory / "few"
        for _ in range(2):
            client = stack.enter_context(connect_unix(path))
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        assert receive_to_end(stack.enter_context(connect_unix(path))) == (b"", "fin")
    served.wait_until_idle("few")


def test_a_rate_lets_a_burst_in_and_no_more(served: Superd) -> None:
    answers = [receive_and_close(served.connect("slow")) for _ in range(5)]
    assert [bool(answer) for answer in answers] == [True] * 3 + [False] * 2
    assert served.counts("slow")["refused-rate"] == 2


def test_one_source_cannot_use_up_the_rate_of_another(served: Superd) -> None:
    for source in ("127.0.0.2", "127.0.0.3"):
        answers = [receive_and_close(served.connect("fair", source)) for _ in range(4)]
        assert [bool(answer) for answer in answers] == [True] * 2 + [False] * 2


def has_refused(served: Superd, service: str, number: int) -> bool:
    return served.counts(service)["refused-rate-per-source"] == number


def test_datagrams_have_the_rate_of_their_source_too(served: Superd) -> None:
    for source in ("127.0.0.5", "127.0.0.6"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind((source, 0))
            client.connect(served.address("fair", "udp"))
            client.settimeout(EVENT_TIMEOUT)
            refused = served.counts("fair")["refused-rate-per-source"] + 3
            for _ in range(5):
                client.send(b"?" * 30)
            assert client.recv(100)
            assert client.recv(100)
            until(partial(has_refused, served, "fair", refused), "three more to be refused")
            assert not select.select([client], [], [], 0)[0]


def test_a_load_below_the_limit_keeps_nobody_out(served: Superd) -> None:
    assert receive_and_close(served.connect("calm"))


def test_a_load_beyond_the_limit_makes_clients_wait(start_superd: Start) -> None:
    served = start_superd(
        """
        [service.calm]
        plugin = "daytime"
        listen = "tcp://127.0.0.1:0"
        max-load = 0.000001
        """
    )
    if not os.getloadavg()[0]:
        pytest.skip("this machine has no load at all")
    with served.connect("calm") as client:
        until(lambda: served.counts("calm")["waits"], "the client to be kept waiting")
        assert is_open(client)


def test_the_daemons_limits_are_for_all_services_and_pools_together(start_superd: Start) -> None:
    served = start_superd(
        """
        [daemon]
        workers = 2
        max-connections = 3

        [defaults]
        plugin = "echo"
        listen = "tcp://127.0.0.1:0"
        on-limit = "reject"

        [service.one]
        [service.two]
        pool = "another"
        """
    )
    with contextlib.ExitStack() as stack:
        for service in ("one", "two", "one"):
            client = stack.enter_context(served.connect(service))
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        for service in ("one", "two"):
            assert connect_and_receive(served.address(service))[0] == b""
            assert served.counts(service)["refused-daemon-max-connections"] == 1


def test_connections_are_counted_by_how_long_they_lasted(served: Superd) -> None:
    def of_other() -> list[int]:
        services = served.answer()["services"]
        durations: list[int] = next(s["durations"] for s in services if s["name"] == "other")
        return durations

    assert sum(of_other()) == 0
    for _ in range(3):
        exchange(served.connect("other"), b"x")
    until(lambda: sum(of_other()) == 3, "three connections to be counted")


def test_a_flood_from_one_source_keeps_nobody_else_out(served: Superd) -> None:
    noisy = served.address("fair")
    for number in range(40):
        with contextlib.ExitStack() as stack:
            for _ in range(50):
                client = socket.socket()
                client.setblocking(False)
                client.bind(("127.0.0.9", 0))
                with contextlib.suppress(BlockingIOError):
                    client.connect(noisy)
                stack.callback(client.close)
            source = f"127.0.1.{number + 1}"
            assert receive_and_close(served.connect("fair", source)), f"{source} was not served"
    assert served.counts("fair")["refused-rate-per-source"] > 1000


def test_an_idle_hoarder_keeps_nobody_else_out(served: Superd) -> None:
    address = served.address("few")
    with contextlib.ExitStack() as stack:
        for _ in range(80):
            client = stack.enter_context(socket.socket())
            client.bind(("127.0.0.9", 0))
            client.connect(address)
        for number in range(100):
            client = served.connect("few", f"127.0.2.{number + 1}")
            assert exchange(client, b"served?") == b"served?"
    served.wait_until_idle("few")


@pytest.mark.soak
def test_a_minute_of_a_thousand_connections_a_second_keeps_nobody_else_out(
    served: Superd,
) -> None:
    address = served.address("fair")
    began = time.monotonic()
    slowest = 0.0
    for second in range(60):
        for tenth in range(10):
            with contextlib.ExitStack() as stack:
                for _ in range(100):
                    client = stack.enter_context(socket.socket())
                    client.setblocking(False)
                    client.bind(("127.0.0.10", 0))
                    with contextlib.suppress(BlockingIOError):
                        client.connect(address)
                asked = time.monotonic()
                assert receive_and_close(served.connect("fair", f"127.1.{second}.{tenth + 1}"))
                slowest = max(slowest, time.monotonic() - asked)
            due = began + second + (tenth + 1) / 10
            select.select([], [], [], max(0.0, due - time.monotonic()))
    print(f"600 of 600 served, the slowest in {slowest * 1000:.1f} ms")
    assert receive_and_close(served.connect("fair", "127.2.0.1"))


DAYTIME = """
[service.daytime]
plugin = "daytime"
listen = "tcp://127.0.0.1:0"
"""


def test_who_has_been_answered_and_does_not_close_has_a_place_until_it_does(
    start_superd: Start,
) -> None:
    """For a second at most; whoever closes can come again at once, as often as it likes."""
    served = start_superd(DAYTIME + "max-per-source = 2")
    address = served.address("daytime")
    for _ in range(50):
        assert connect_and_receive(address)[1] == "fin"

    def a_third_is_refused() -> bool:
        with connect_tcp(address) as first, connect_tcp(address) as second:
            assert len(receive_to_end(first)[0]) == len(receive_to_end(second)[0]) == 26
            return connect_and_receive(address)[0] == b""

    until(a_third_is_refused, "a third to come within the second")
    assert served.counts("daytime")["refused-max-per-source"] == 1
    until(lambda: served.counts("daytime")["active"] == 0, "both places to be given back")
    with connect_tcp(address) as stays:
        assert len(receive_to_end(stays)[0]) == 26
        served.wait_until_idle("daytime", timeout=5)


def test_a_single_place_goes_to_the_next_as_soon_as_a_client_has_closed(
    start_superd: Start,
) -> None:
    served = start_superd(DAYTIME + "max-connections = 1")
    began = time.monotonic()
    for _ in range(100):
        assert len(connect_and_receive(served.address("daytime"))[0]) == 26
    assert time.monotonic() - began < 3  # a second each, if each were let go when its time is over
