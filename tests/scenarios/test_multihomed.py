"""Services that share a port at different local addresses: each client reaches the most specific.

Runs in a network namespace, on port 7, with addresses of both families.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from superd.errors import ExitCode
from tests.conftest import Start
from tests.support.clients import connect_tcp
from tests.support.harness import Superd, ask_udp, exchange, make_plugin
from tests.support.namespaces import Namespace, network_namespace

pytestmark = [pytest.mark.root, pytest.mark.tool("ip")]

# answers with the service and the local address that a client reached
WITNESS = """
    from superd.plugin import Options, Service, hookimpl

    class WitnessOptions(Options):
        label: str

    class Witness(Service):
        name = "witness"
        options_model = WitnessOptions

        async def stream(self, conn):
            await conn.read()
            await conn.send(f"{self.options.label} {conn.local.endpoint}".encode())

        def datagram(self, request):
            return f"{self.options.label} {request.local.endpoint}".encode()

    @hookimpl
    def superd_services():
        return [Witness]
"""

WILDCARD, SPECIFIC, PRIVATE = "wildcard", "specific", "private"

# which service answers at which address
ANSWERS = {
    "127.0.0.1": WILDCARD,
    "127.0.0.2": SPECIFIC,
    "127.0.0.3": PRIVATE,
    "192.0.2.1": SPECIFIC,
    "192.0.2.2": WILDCARD,
    "::1": WILDCARD,
    "2001:db8::1": SPECIFIC,
    "2001:db8::2": WILDCARD,
}


@contextlib.contextmanager
def a_machine() -> Iterator[Namespace]:
    """Make a network namespace with all the addresses."""
    with network_namespace() as space:
        for host in ANSWERS:
            if not host.startswith(("127.", "::1")):
                space.add_address(f"{host}/{128 if ':' in host else 32}")
        yield space


@pytest.fixture(scope="module")
def machine() -> Iterator[Namespace]:
    with a_machine() as space:
        yield space


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def entry(label: str, hosts: list[str]) -> str:
    listen = [f"{kind}://{bracketed(host)}:7" for host in hosts for kind in ("tcp", "udp")]
    extra = 'user = "daemon"' if label == PRIVATE else ""  # in another pool
    return f"""
        [service.{label}]
        plugin = "witness"
        listen = {listen}
        options = {{ label = "{label}" }}
        amplify = true
        {extra}
        """


def entries() -> list[str]:
    hosts = {
        label: [host for host, expected in ANSWERS.items() if expected == label]
        for label in (SPECIFIC, PRIVATE)
    }
    hosts[WILDCARD] = ["*"]
    return [entry(label, hosts[label]) for label in (WILDCARD, SPECIFIC, PRIVATE)]


def toml(order: str, workers: int = 1) -> str:
    made = entries() if order == "wildcard first" else entries()[::-1]
    return "\n".join(["[daemon]", f"workers = {workers}", *made])


def assert_each_reaches_the_most_specific(rounds: int = 1) -> None:
    for host, label in ANSWERS.items():
        expected = f"{label} {bracketed(host)}:7".encode()
        for _ in range(rounds):
            assert exchange(connect_tcp((host, 7)), b"who?") == expected
            assert ask_udp((host, 7), b"who?") == expected


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_plugin(tmp_path_factory.mktemp("plugins"), "witness", WITNESS)


@pytest.mark.parametrize("order", ["wildcard first", "wildcard last"])
@pytest.mark.parametrize("workers", [1, 2])
def test_each_connection_and_datagram_reaches_the_most_specific_service(
    start_superd: Start, machine: Namespace, env: dict[str, str], order: str, workers: int
) -> None:
    start_superd(toml(order, workers), *machine.wrapper, env=env)
    with machine.inside():
        assert_each_reaches_the_most_specific(rounds=10)


def test_the_order_of_addresses_within_a_service_does_not_matter(
    start_superd: Start, machine: Namespace, env: dict[str, str]
) -> None:
    both = [entry(WILDCARD, ["127.0.0.2", "*", "::1", "127.0.0.3"])]
    start_superd("\n".join(both), *machine.wrapper, env=env)
    with machine.inside():
        for host in ANSWERS:
            expected = f"{WILDCARD} {bracketed(host)}:7".encode()
            assert exchange(connect_tcp((host, 7)), b"who?") == expected
            assert ask_udp((host, 7), b"who?") == expected


@pytest.fixture(scope="module")
def occupied(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    """A network namespace in which a superd listens on all the addresses."""
    first = Superd(tmp_path_factory.mktemp("first"), toml("wildcard first"), env=env)
    with a_machine() as space:
        try:
            first.start(*space.wrapper)
            yield space
        finally:
            first.stop()


SPECIFIC_HOSTS = [host for host, label in ANSWERS.items() if label != WILDCARD]


@pytest.mark.parametrize(
    ("hosts", "named"),
    [
        (["*", *SPECIFIC_HOSTS], ["*", *SPECIFIC_HOSTS]),
        (["*"], ["*"]),
        *(([host], [host]) for host in ("127.0.0.2", "192.0.2.2", "2001:db8::1")),
    ],
    ids=["all", "wildcard", "specific", "under the wildcard", "ipv6"],
)
def test_a_second_superd_cannot_bind_any_of_the_addresses(
    occupied: Namespace, env: dict[str, str], tmp_path: Path, hosts: list[str], named: list[str]
) -> None:
    second = Superd(tmp_path, entry(WILDCARD, hosts), env=env)
    with occupied.inside():
        session = connect_tcp(("127.0.0.2", 7))
        with pytest.raises(AssertionError, match="the address is in use by process"):
            second.start(*occupied.wrapper)
        assert second.stop() == ExitCode.ADDRESS_IN_USE
        assert "Traceback" not in second.log()
        for host in named:
            for kind in ("tcp", "udp"):
                assert re.search(
                    rf"cannot listen on .*{kind}://{re.escape(bracketed(host))}:7[:,]", second.log()
                )
        # the first superd still serves all of its addresses and connections
        assert exchange(session, b"who?") == f"{SPECIFIC} 127.0.0.2:7".encode()
        assert_each_reaches_the_most_specific(rounds=5)


def test_an_address_in_use_by_another_program_is_reported(
    machine: Namespace, env: dict[str, str], tmp_path: Path
) -> None:
    stops = toml("wildcard first").replace("[daemon]", '[daemon]\non-bind-failure = "stop"')
    daemon = Superd(tmp_path, stops, env=env)
    with (
        machine.inside(),
        socket.create_server(("127.0.0.2", 7)),
        pytest.raises(AssertionError, match=r"tcp://127\.0\.0\.2:7: the address is in use"),
    ):
        daemon.start(*machine.wrapper)
    assert daemon.stop() == ExitCode.ADDRESS_IN_USE
    assert "udp://" not in daemon.log()


def test_without_ipv6_the_wildcard_serves_ipv4_beside_a_specific_address(
    start_superd: Start, env: dict[str, str]
) -> None:
    with network_namespace() as machine:
        machine.sysctl("net.ipv6.conf.all.disable_ipv6=1")
        both = [entry(SPECIFIC, ["127.0.0.2"]), entry(WILDCARD, ["*"])]
        start_superd("\n".join(both), *machine.wrapper, env=env)
        with machine.inside():
            for host, label in (("127.0.0.1", WILDCARD), ("127.0.0.2", SPECIFIC)):
                expected = f"{label} {host}:7".encode()
                assert exchange(connect_tcp((host, 7)), b"who?") == expected
                assert ask_udp((host, 7), b"who?") == expected
