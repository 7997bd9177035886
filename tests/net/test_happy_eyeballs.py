from __future__ import annotations

import time

import pytest

from superd.net.addresses import Address, Transport
from superd.net.happy_eyeballs import CONNECTION_ATTEMPT_DELAY, Candidates


def candidates(*hosts: str) -> Candidates[Address]:
    return Candidates(Address(Transport.TCP, host, 7) for host in hosts)


@pytest.mark.parametrize(
    ("hosts", "order"),
    [
        ([], []),
        (["192.0.2.1", "192.0.2.2"], ["192.0.2.1", "192.0.2.2"]),
        (["::1", "::2", "192.0.2.1"], ["::1", "192.0.2.1", "::2"]),
        (["192.0.2.1", "192.0.2.2", "::1"], ["192.0.2.1", "::1", "192.0.2.2"]),
        (["::1", "192.0.2.1", "192.0.2.2"], ["::1", "192.0.2.1", "192.0.2.2"]),
    ],
)
def test_address_families_take_turns(hosts: list[str], order: list[str]) -> None:
    assert [address.host for address in candidates(*hosts)] == order


def test_the_first_address_is_due_at_once_and_the_next_after_the_delay() -> None:
    addresses = candidates("192.0.2.1", "192.0.2.2")
    assert addresses.due_at <= time.monotonic()
    before = time.monotonic()
    addresses.attempted()
    after = time.monotonic()
    assert before <= addresses.due_at - CONNECTION_ATTEMPT_DELAY <= after
