"""Limits with real clients: never exceeded, and a freed slot is used immediately."""

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

SLOTS = 50  # max-connections in RACE


@contextlib.contextmanager
def pending_clients(address: Address, number: int) -> Iterator[set[socket.socket]]:
    """Connect clients that each send a byte and wait for the answer."""
    with contextlib.ExitStack() as stack:
        clients = {stack.enter_context(connect_tcp(address)) for _ in range(number)}
        for client in clients:
            client.sendall(b"x")
        yield clients


def answered(clients: set[socket.socket]) -> set[socket.socket]:
    """Wait until a client has an answer; return all clients that have one."""
    poll = select.poll()
    by_descriptor = {client.fileno(): client for client in clients}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    ready = poll.poll(EVENT_TIMEOUT * 1000)
    assert ready, "no client is answered any more"
    return {by_descriptor[descriptor] for descriptor, _ in ready}


def race(served: Superd, service: str, clients: set[socket.socket], slots: int) -> None:
    """Check that all clients are served, and never more than `slots` at the same time."""
    admitted: set[socket.socket] = set()
    pending = set(clients)
    highest = 0
    while pending:
        admitted |= answered(pending)
        pending -= admitted
        highest = max(highest, len(admitted))
        assert len(admitted) <= slots
        assert served.counts(service)["active"] <= slots
        if len(admitted) == slots or not pending:
            for client in admitted:
                client.close()
            admitted.clear()
    assert highest == min(slots, len(clients))


RACE = """
[daemon]
workers = 4

[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
max-connections = 50
"""


def test_a_thousand_clients_of_four_workers_never_exceed_max_connections(
    start_superd: Start,
) -> None:
    served = start_superd(RACE)
    with pending_clients(served.address("echo"), 1000) as clients:
        race(served, "echo", clients, SLOTS)
    served.wait_until_idle("echo")
    with pending_clients(served.address("echo"), SLOTS) as again:
        race(served, "echo", again, SLOTS)
    assert served.counts("echo")["accepted"] == 1000 + SLOTS


def test_a_killed_worker_releases_its_slots(start_superd: Start) -> None:
    served = start_superd(RACE)
    with pending_clients(served.address("echo"), SLOTS) as clients:
        admitted: set[socket.socket] = set()
        while len(admitted) < SLOTS:
            admitted |= answered(clients - admitted)
        for worker in served.workers():
            os.kill(worker, signal.SIGKILL)
        for client in clients:
            assert receive_to_end(client)[1] in ("fin", "reset")
        with pending_clients(served.address("echo"), SLOTS + 30) as successors:
            race(served, "echo", successors, SLOTS)


def test_clients_at_a_limit_wait_and_are_served_once_a_slot_is_free(
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
    with connect_tcp(first) as admitted, connect_tcp(second) as pending:
        admitted.sendall(b"in")
        assert admitted.recv(10) == b"in"
        pending.sendall(b"out")
        until(lambda: served.counts("echo")["waits"], "a client to wait")
        assert is_open(pending)
        assert served.counts("echo")["accepted"] == 1  # the other client is in the backlog
        admitted.close()
        assert pending.recv(10) == b"out"


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
def one_client(served: Superd, service: str) -> Iterator[socket.socket]:
    with served.connect(service) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        yield client
    served.wait_until_idle(service)


def test_a_rejected_client_gets_the_banner_even_if_it_has_sent_data(served: Superd) -> None:
    with one_client(served, "rejects"):
        for _ in range(30):
            assert connect_and_receive(served.address("rejects"), b"unread") == (
                b"all lines are busy\r\n",
                "fin",
            )
        assert served.counts("rejects")["refused-max-connections"] == 30
    assert exchange(served.connect("rejects"), b"now") == b"now"


def test_a_client_in_the_tarpit_gets_no_data_and_occupies_no_slot(served: Superd) -> None:
    with one_client(served, "holds") as admitted, served.connect("holds") as held:
        held.sendall(b"hello?")
        until(
            lambda: served.counts("holds")["refused-max-connections"] == 1,
            "the client in the tarpit",
        )
        assert is_open(held)
        admitted.sendall(b"y")
        assert admitted.recv(1) == b"y"
        assert served.counts("holds")["active"] == 1
    with one_client(served, "holds"):
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


def test_the_tarpit_uses_a_quarter_of_the_descriptors_and_frees_them_on_demand(
    start_superd: Start,
) -> None:
    served = start_superd(TIGHT)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(served.connect("holds")) for _ in range(101)]
        until(
            lambda: served.counts("holds")["refused-max-per-source"] == 100,
            "the clients in the tarpit",
        )
        until(lambda: sum(map(is_open, held)) == 1 + 64 // 4, "most of them to be closed")
        for number in range(60):  # the last ones need descriptors from the tarpit
            client = stack.enter_context(served.connect("other", f"127.0.2.{number + 1}"))
            client.sendall(b"x")
        until(lambda: sum(map(is_open, held)) == 1, "all of them to be closed")


def test_max_per_source_limits_each_source_separately(served: Superd) -> None:
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


def test_the_source_of_a_unix_client_is_its_user(served: Superd) -> None:
    with contextlib.ExitStack() as stack:
        path = served.directory / "few"
        for _ in range(2):
            client = stack.enter_context(connect_unix(path))
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        assert receive_to_end(stack.enter_context(connect_unix(path))) == (b"", "fin")
    served.wait_until_idle("few")


def test_a_rate_admits_a_burst_and_refuses_more_clients(served: Superd) -> None:
    answers = [receive_and_close(served.connect("slow")) for _ in range(5)]
    assert [bool(answer) for answer in answers] == [True] * 3 + [False] * 2
    assert served.counts("slow")["refused-rate"] == 2


def test_a_source_cannot_use_up_the_rate_of_another_source(served: Superd) -> None:
    for source in ("127.0.0.2", "127.0.0.3"):
        answers = [receive_and_close(served.connect("fair", source)) for _ in range(4)]
        assert [bool(answer) for answer in answers] == [True] * 2 + [False] * 2


def has_refused(served: Superd, service: str, number: int) -> bool:
    return served.counts(service)["refused-rate-per-source"] == number


def test_rate_per_source_limits_datagrams(served: Superd) -> None:
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
            until(partial(has_refused, served, "fair", refused), "three more refusals")
            assert not select.select([client], [], [], 0)[0]


def test_a_load_below_the_limit_refuses_no_client(served: Superd) -> None:
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
        until(lambda: served.counts("calm")["waits"], "the client to wait")
        assert is_open(client)


def test_the_limits_of_the_daemon_count_all_services_and_pools_together(
    start_superd: Start,
) -> None:
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


def test_connections_are_counted_by_their_duration(served: Superd) -> None:
    def of_other() -> list[int]:
        services = served.answer()["services"]
        durations: list[int] = next(s["durations"] for s in services if s["name"] == "other")
        return durations

    assert sum(of_other()) == 0
    for _ in range(3):
        exchange(served.connect("other"), b"x")
    until(lambda: sum(of_other()) == 3, "three counted connections")


def test_a_flood_from_one_source_does_not_affect_other_clients(served: Superd) -> None:
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


def test_idle_connections_of_one_source_do_not_affect_other_clients(served: Superd) -> None:
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
def test_a_minute_of_a_thousand_connections_a_second_does_not_affect_other_clients(
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


def test_an_answered_client_that_does_not_close_occupies_its_slot(
    start_superd: Start,
) -> None:
    """For a second at most. A client that closes can connect again immediately."""
    served = start_superd(DAYTIME + "max-per-source = 2")
    address = served.address("daytime")
    for _ in range(50):
        assert connect_and_receive(address)[1] == "fin"

    def a_third_is_refused() -> bool:
        with connect_tcp(address) as first, connect_tcp(address) as second:
            assert len(receive_to_end(first)[0]) == len(receive_to_end(second)[0]) == 26
            return connect_and_receive(address)[0] == b""

    until(a_third_is_refused, "the refusal of a third client within the second")
    assert served.counts("daytime")["refused-max-per-source"] == 1
    until(lambda: served.counts("daytime")["active"] == 0, "the release of both slots")
    with connect_tcp(address) as stays:
        assert len(receive_to_end(stays)[0]) == 26
        served.wait_until_idle("daytime", timeout=5)


def test_a_single_slot_is_free_for_the_next_client_once_a_client_has_closed(
    start_superd: Start,
) -> None:
    served = start_superd(DAYTIME + "max-connections = 1")
    began = time.monotonic()
    for _ in range(100):
        assert len(connect_and_receive(served.address("daytime"))[0]) == 26
    assert time.monotonic() - began < 3  # else each would take the second of a lingering close
