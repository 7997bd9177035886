"""Datagrams over udp and unixgram: sizes, addresses, amplification, failing plugins, floods."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import ask_unixgram, connect_unix
from tests.support.harness import EVENT_TIMEOUT, Superd, ask_udp, until
from tests.support.strangers import stranger

SO_SNDBUFFORCE = 32
UDP_SEGMENT = 103  # splits a send into datagrams of a size (udp(7))
DATAGRAMS_PER_SEND = 50

MOODY = """
    from superd.plugin import Service, hookimpl

    class Moody(Service):
        name = "moody"

        def datagram(self, request):
            word = request.data.decode().strip()
            if word == "raise":
                raise RuntimeError("in a mood")
            if word == "exit":
                raise SystemExit(3)
            if word == "text":
                return "?"
            if word == "number":
                return 7
            if word == "long":
                return bytes(1000)
            if word == "quiet":
                return None
            if word == "where":
                return request.peer.endpoint.encode()
            return request.data

    @hookimpl
    def superd_services():
        return [Moody]
"""
SMALL = ("discard", "daytime", "time", "qotd", "chargen", "message")
NAMES = ("echo", "moody", *SMALL)


def entries(*names: str) -> str:
    """Return entries of services that are named after their plugins."""
    return "\n".join(
        f'[service.{name}]\nplugin = "{name}"\nlisten = "udp://127.0.0.1:0"' for name in names
    )


PLUGINS = {"moody": MOODY}
TOML = f"""
    [service.echo]
    plugin = "echo"
    listen = [
        "udp://127.0.0.1:0", "udp://[::1]:0", "udp://*:0", "unixgram://{{directory}}/echo",
    ]
    {entries("moody", *SMALL)}
"""
ECHO_SOCKETS = ("ipv4", "ipv6", "ipv4 wildcard", "ipv6 wildcard")


def echo_address(superd: Superd, which: str) -> tuple[str, int]:
    """Return an address to reach one of echo's udp sockets."""
    host, port = superd.addresses("echo", "udp")[ECHO_SOCKETS.index(which)]
    return {"0.0.0.0": "127.0.0.2", "::": "::1"}.get(host, host), port


@contextlib.contextmanager
def connected(address: tuple[str, int]) -> Iterator[socket.socket]:
    """A connected client, which receives no answers from other addresses."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(EVENT_TIMEOUT)
        client.connect(address)
        yield client


def receive_pending(client: socket.socket) -> list[bytes]:
    """Return the datagrams in a client's queue, without waiting for more."""
    found = []
    while select.select([client], [], [], 0)[0]:
        found.append(client.recv(1 << 18))
    return found


def wait_until_served(superd: Superd, service: str, number: int) -> dict[str, int]:
    """Wait until a service has handled `number` datagrams; return its counters."""

    def served() -> dict[str, int] | None:
        counts = superd.counts(service)
        return counts if counts["datagrams"] >= number else None

    return until(served, f"{number} datagrams of {service}")


def wait_until_counted(superd: Superd, service: str, number: int) -> dict[str, int]:
    """Wait until each datagram was read or dropped from a full queue; return the counters."""

    def counted() -> dict[str, int] | None:
        counts = superd.counts(service)
        return counts if counts["datagrams"] + counts["dropped"] == number else None

    return until(counted, f"{number} datagrams of {service}")


# Sizes


@pytest.mark.parametrize("which", ECHO_SOCKETS)
@pytest.mark.parametrize("size", [0, 1, 1472, 8192, 65507])
def test_a_datagram_is_echoed_unchanged(served: Superd, which: str, size: int) -> None:
    data = random.Random(size).randbytes(size)
    with connected(echo_address(served, which)) as client:
        client.send(data)
        assert client.recv(1 << 17) == data


@pytest.mark.parametrize("which", ["ipv6", "ipv6 wildcard"])
def test_the_longest_datagram_of_ipv6_is_echoed(served: Superd, which: str) -> None:
    data = random.Random(0).randbytes(65527)
    with connected(echo_address(served, which)) as client:
        client.send(data)
        assert client.recv(1 << 17) == data


@pytest.mark.parametrize("size", [0, 1, 65508, 200_000])
def test_a_unix_datagram_is_echoed_unchanged(served: Superd, size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert ask_unixgram(served.directory / "echo", data) == data


@pytest.mark.root
def test_a_datagram_that_is_too_long_is_dropped_and_counted(served: Superd) -> None:
    before = served.counts("echo")["refused-too-long"]
    with connect_unix(served.directory / "echo", socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 20)
        client.send(bytes(300_000))
        client.send(b"short")
        assert client.recv(1 << 20) == b"short"
    until(lambda: served.counts("echo")["refused-too-long"] == before + 1, "the refusal")


# Addresses


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.200.0.1"])
def test_an_answer_has_the_requested_address_as_its_source(served: Superd, host: str) -> None:
    port = echo_address(served, "ipv4 wildcard")[1]
    for _ in range(3):
        assert ask_udp((host, port), b"hello") == b"hello"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unconnected:
        unconnected.settimeout(EVENT_TIMEOUT)
        unconnected.sendto(b"hello", (host, port))
        assert unconnected.recvfrom(100) == (b"hello", (host, port))


def test_a_plugin_knows_the_address_of_the_peer(served: Superd) -> None:
    with connected(served.address("moody", "udp")) as client:
        client.send(b"where".ljust(30))
        host, port = client.getsockname()
        assert client.recv(100) == f"{host}:{port}".encode()


def test_a_unix_client_without_a_name_gets_no_answer_and_is_counted(served: Superd) -> None:
    before = served.counts("echo")["refused-unnamed"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unnamed:
        unnamed.connect(str(served.directory / "echo"))
        for _ in range(10):
            unnamed.send(b"hello")
        assert ask_unixgram(served.directory / "echo", b"named") == b"named"
        assert receive_pending(unnamed) == []
    until(lambda: served.counts("echo")["refused-unnamed"] == before + 10, "ten refusals")
    assert "Traceback" not in served.log()


def leave_before_the_answer(superd: Superd, number: int) -> None:
    """Send requests over udp and unixgram, and close each client before its answer."""
    for _ in range(number):
        for which in ("ipv4", "ipv6 wildcard"):
            with connected(echo_address(superd, which)) as client:
                client.send(b"hello")
        with connect_unix(superd.directory / "echo", socket.SOCK_DGRAM) as client:
            client.send(b"hello")


def test_an_answer_that_is_redirected_to_superd_itself_is_refused(start_superd: Start) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)  # the worker runs as another user
        path, own = directory / "echo", directory / "client"
        entry = f'plugin = "echo"\nlisten = "unixgram://{path}?mode=0666"'
        served = start_superd(f"[service.echo]\n{entry}\n")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.bind(str(own))
            own.unlink()
            own.symlink_to(path)
            client.sendto(b"x", str(path))
        until(lambda: served.counts("echo")["refused-source-address"], "the refusal")
        counts = served.counts("echo")
    assert (counts["datagrams"], counts["answers"], counts["refused-source-address"]) == (2, 1, 1)


@pytest.mark.parametrize("number", [1000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_clients_that_close_before_the_answer_do_no_harm(served: Superd, number: int) -> None:
    lines = served.log().count("\n")
    before = served.workers()
    leave_before_the_answer(served, number)
    for which in ECHO_SOCKETS:
        assert ask_udp(echo_address(served, which), b"hello") == b"hello"
    assert ask_unixgram(served.directory / "echo", b"hello") == b"hello"
    assert served.workers() == before
    assert "Traceback" not in served.log()
    assert served.log().count("\n") - lines <= number // 100


# Amplification


@pytest.mark.root
@pytest.mark.tool("ip")
@pytest.mark.parametrize("service", ["echo", *SMALL])
def test_an_answer_is_never_longer_than_its_request(start_superd: Start, service: str) -> None:
    sizes = (0, 1, 2, 3, 4, 25, 26, 27, 600)
    with stranger(start_superd, service) as (served, client):
        for number, size in enumerate(sizes, 1):
            for _ in range(20):
                client.send(b"x" * size)
            wait_until_served(served, service, number * 20)
            assert all(len(answer) <= size for answer in receive_pending(client))


@pytest.mark.root
@pytest.mark.tool("ip")
def test_an_amplifying_answer_is_counted_and_logged_with_the_key_that_allows_it(
    start_superd: Start,
) -> None:
    with stranger(start_superd, "daytime") as (served, client):
        client.send(b"x" * 25)
        client.send(b"x" * 26)
        assert len(client.recv(100)) == 26
        assert receive_pending(client) == []
        counts = wait_until_served(served, "daytime", 2)
        assert (counts["refused-amplification"], counts["answers"]) == (1, 1)
        served.wait_for_log(
            "datagram not answered: amplification; the answer is longer than the request, and"
            r" amplify = false service=daytime peer=192\.0\.2\.1"
        )


def test_a_client_that_asks_a_loopback_address_gets_a_longer_answer(served: Superd) -> None:
    """Its address is not forged: the kernel drops such datagrams of other machines."""
    assert len(ask_udp(served.address("daytime", "udp"), b"")) == 26


def test_amplify_sends_longer_answers(start_superd: Start) -> None:
    superd = start_superd(
        """
        [service.daytime]
        plugin = "daytime"
        listen = "udp://127.0.0.1:0"
        amplify = true
        """
    )
    assert len(ask_udp(superd.address("daytime", "udp"), b"")) == 26


# Plugins


@pytest.mark.parametrize("mood", ["raise", "exit", "text", "number"])
def test_a_failure_of_the_plugin_loses_only_that_datagram(served: Superd, mood: str) -> None:
    number = 200
    before, workers, lines = served.counts("moody"), served.workers(), served.log().count("\n")
    with connected(served.address("moody", "udp")) as client:
        for _ in range(number):
            client.send(mood.encode())
            client.send(b"hello")
            assert client.recv(100) == b"hello"
    after = wait_until_served(served, "moody", before["datagrams"] + 2 * number)
    assert after["errors"] == before["errors"] + number
    assert after["answers"] == before["answers"] + number
    assert served.workers() == workers
    served.wait_for_log("plugin moody failed: .*service=moody")
    assert served.log().count("\n") - lines <= 200, "more than a few tracebacks"


@pytest.mark.parametrize(("mood", "kind"), [("text", "str"), ("number", "int")])
def test_an_answer_that_is_not_bytes_is_an_error_of_the_plugin(
    served: Superd, mood: str, kind: str
) -> None:
    before = served.counts("moody")
    with connected(served.address("moody", "udp")) as client:
        client.send(mood.encode())
    after = wait_until_served(served, "moody", before["datagrams"] + 1)
    assert after["errors"] == before["errors"] + 1
    assert after["refused-amplification"] == before["refused-amplification"]
    served.wait_for_log(rf"plugin moody failed: TypeError: datagram\(\) returned {kind}, not bytes")


def test_no_answer_is_sent_if_the_plugin_returns_none(served: Superd) -> None:
    with connected(served.address("moody", "udp")) as client:
        client.send(b"quiet")
        client.send(b"hello")
        assert client.recv(100) == b"hello"


# Floods


def flood(superd: Superd, number: int) -> None:
    """Send random datagrams to the services, faster than they can read them."""
    rng = random.Random(1)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(superd.address(name, "udp"))) for name in FLOODED]
        for turn in range(number // DATAGRAMS_PER_SEND):
            client, size = clients[turn % len(clients)], rng.choice((1, 4, 25, 60, 512))
            client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
            client.send(rng.randbytes(size * DATAGRAMS_PER_SEND))


def answer_within(seconds: float, address: tuple[str, int]) -> None:
    """Repeat a request until it is answered: the kernel drops it while the queue is full."""

    def answered() -> bool:
        try:
            return ask_udp(address, b"hello", timeout=0.1) == b"hello"
        except TimeoutError:
            return False

    until(answered, "an answer", seconds)


FLOODED = ("echo", "discard", "daytime")


@pytest.mark.parametrize("number", [20_000, pytest.param(500_000, marks=pytest.mark.soak)])
def test_a_flood_of_garbage_makes_only_a_few_log_lines(start_superd: Start, number: int) -> None:
    superd = start_superd(entries(*FLOODED))
    before, workers = superd.log().count("\n"), superd.workers()
    flood(superd, number)
    answer_within(5, superd.address("echo", "udp"))
    assert superd.log().count("\n") - before <= 10
    assert "Traceback" not in superd.log()
    assert superd.workers() == workers


def test_datagrams_that_a_full_queue_drops_are_counted(start_superd: Start) -> None:
    superd = start_superd(entries("discard"))
    (worker,) = superd.workers()
    number = 20_000
    os.kill(worker, signal.SIGSTOP)
    try:
        with connected(superd.address("discard", "udp")) as client:
            for _ in range(number):
                client.send(b"hello")
    finally:
        os.kill(worker, signal.SIGCONT)

    assert wait_until_counted(superd, "discard", number)["dropped"] > 0


@pytest.mark.soak
def test_ten_thousand_datagrams_a_second_are_answered_or_counted(start_superd: Start) -> None:
    superd = start_superd(entries("echo"))
    rate, seconds = 10_000, 10
    answered = 0
    with connected(superd.address("echo", "udp")) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        started = time.monotonic()
        for turn in range(rate * seconds):
            client.send(turn.to_bytes(4, "big"))
            if turn % 100 == 0:
                answered += len(receive_pending(client))
                time.sleep(max(0, started + turn / rate - time.monotonic()))
        counts = wait_until_counted(superd, "echo", rate * seconds)
        answered += len(receive_pending(client))
    assert counts["answers"] == counts["datagrams"]
    assert answered >= rate * seconds * 99 // 100


@pytest.mark.parametrize("number", [1000, pytest.param(100_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("which", ECHO_SOCKETS)
def test_each_of_many_requests_in_a_row_is_answered(
    served: Superd, which: str, number: int
) -> None:
    with connected(echo_address(served, which)) as client:
        for turn in range(number):
            ping = turn.to_bytes(8, "big")
            client.send(ping)
            assert client.recv(100) == ping


def test_several_workers_share_a_socket(start_superd: Start) -> None:
    superd = start_superd("[daemon]\nworkers = 3\n" + entries("echo"))
    with contextlib.ExitStack() as stack:
        address = superd.address("echo", "udp")
        clients = [stack.enter_context(connected(address)) for _ in range(10)]
        for turn in range(200):
            ping = turn.to_bytes(2, "big")
            for client in clients:
                client.send(ping)
            for client in clients:
                assert client.recv(100) == ping
    counts = wait_until_served(superd, "echo", 2000)
    assert (counts["datagrams"], counts["answers"], counts["errors"]) == (2000, 2000, 0)


def test_datagrams_from_before_a_stop_are_answered(start_superd: Start) -> None:
    superd = start_superd(entries("echo"))
    (worker,) = superd.workers()
    with connected(superd.address("echo", "udp")) as client:
        os.kill(worker, signal.SIGSTOP)
        for turn in range(50):
            client.send(bytes([turn]))
        superd.signal(signal.SIGTERM)
        superd.wait_for_log("stopping: connections may finish")
        os.kill(worker, signal.SIGCONT)
        assert superd.wait() == 0
        assert receive_pending(client) == [bytes([turn]) for turn in range(50)]
