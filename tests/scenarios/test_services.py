"""A service over several transports, with real clients."""

from __future__ import annotations

from tests.conftest import Start
from tests.support.harness import ask_udp, exchange


def test_echo_answers_over_tcp_and_udp(start_superd: Start) -> None:
    superd = start_superd(
        """
        [service.echo]
        plugin = "echo"
        listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]
        """
    )
    assert exchange(superd.connect("echo"), b"hello") == b"hello"
    assert ask_udp(superd.address("echo", "udp"), b"hello") == b"hello"
