"""The gate: each limit by tables, and any history of several workers against a naive model."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superd.admission.access import UnixPeer
from superd.admission.gate import NO_SOURCE, Counters, Gate, Ticket, Unnamed
from superd.admission.ledger import MAX_SOURCES, SLOTS, Ledger
from superd.admission.limits import SECOND, Load
from superd.admission.refusals import Refusal
from superd.admission.scoreboard import Count, Roster, Scoreboard
from superd.config.model import Daemon, Limits, Service

START_TIME = 1000 * SECOND
HOSTS = ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:1::1")


class Clock:
    """The gate's clock in nanoseconds, set by the test."""

    def __init__(self) -> None:
        self.now = START_TIME

    def __call__(self) -> int:
        return self.now


@dataclass
class Gates:
    """The gates of one service in several workers, and its number of active connections."""

    entry: Service
    daemon: Daemon
    workers: int = 2
    load: float = 0.0
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        roster = Roster.of(("web", "other"), self.workers)
        self.board = Scoreboard(roster)
        self.ledger = Ledger(roster)
        self.gates = [
            Gate.of(
                "web",
                self.entry,
                self.daemon,
                Counters(self.ledger, self.board, place, Load(lambda: self.load), self.clock),
                None,
            )
            for place in range(self.workers)
        ]

    def vacate(self, place: int) -> None:
        self.board.vacate(place)
        self.ledger.vacate(place)

    @property
    def active(self) -> int:
        return sum(self.board.active("web"))


def entry(**limits: object) -> Service:
    return Service.model_validate(
        {"plugin": "echo", "listen": "tcp://127.0.0.1:7"}
        | {key.replace("_", "-"): value for key, value in limits.items()}
    )


def daemon(**limits: object) -> Daemon:
    return Daemon.model_validate({key.replace("_", "-"): value for key, value in limits.items()})


LIMIT_CASES = [
    ({}, {}, [None] * 4),
    ({"max_connections": 2}, {}, [None, None, Refusal.CONNECTIONS]),
    ({"max_per_source": 1}, {}, [None, Refusal.SOURCE_CONNECTIONS]),
    ({"rate": "2/s"}, {}, [None, None, Refusal.RATE]),
    ({"rate": "2/s", "burst": 1}, {}, [None, Refusal.RATE]),
    ({"rate_per_source": "1/min"}, {}, [None, Refusal.SOURCE_RATE]),
    ({"rate_per_source": "1/min", "burst_per_source": 2}, {}, [None, None, Refusal.SOURCE_RATE]),
    ({"max_load": 0.5}, {}, [Refusal.LOAD]),
    ({}, {"max_connections": 1}, [None, Refusal.DAEMON_CONNECTIONS]),
    ({}, {"max_per_source": 1}, [None, Refusal.DAEMON_SOURCE_CONNECTIONS]),
    ({}, {"rate": "1/s"}, [None, Refusal.DAEMON_RATE]),
    ({}, {"rate_per_source": "1/s"}, [None, Refusal.DAEMON_SOURCE_RATE]),
    ({}, {"max_load": 1}, [Refusal.DAEMON_LOAD]),
    # the order of the checks: load, rate, the source's rate and connections, all connections
    ({"max_load": 1, "rate": "1/min"}, {}, [Refusal.LOAD]),
    ({"rate": "1/s", "rate_per_source": "1/s"}, {}, [None, Refusal.RATE]),
    ({"rate_per_source": "1/s", "max_per_source": 1}, {}, [None, Refusal.SOURCE_RATE]),
    ({"max_per_source": 1, "max_connections": 1}, {}, [None, Refusal.SOURCE_CONNECTIONS]),
    ({"max_connections": 1}, {"max_connections": 1}, [None, Refusal.CONNECTIONS]),
]


@pytest.mark.parametrize(("own", "overall", "expected"), LIMIT_CASES)
def test_a_refusal_names_the_limit_that_was_reached(
    own: dict[str, object], overall: dict[str, object], expected: list[Refusal | None]
) -> None:
    gates = Gates(entry(on_limit="reject", **own), daemon(**overall), load=2.0)
    answers = [gates.gates[n % 2].admit(HOSTS[0]) for n in range(len(expected))]
    found = [answer if isinstance(answer, Refusal) else None for answer in answers]
    assert found == expected
    assert gates.active == expected.count(None)


def test_all_limits_except_those_of_connections_apply_to_a_datagram() -> None:
    limits = entry(max_connections=1, max_per_source=1, rate_per_source="2/s")
    gate = Gates(limits, daemon()).gates[0]
    answers = [gate.admit_datagram(HOSTS[0]) for _ in range(3)]
    assert answers == [None, None, Refusal.SOURCE_RATE]
    assert gate.admit_datagram(HOSTS[1]) is None
    assert gate.counts[Count.ACTIVE] == 0


@pytest.mark.parametrize("kind", ["admit_datagram", "admit_flow"])
def test_forged_datagrams_leave_slots_for_the_sources_of_connections(kind: str) -> None:
    gate = Gates(entry(rate_per_source="1/min", on_limit="reject"), daemon()).gates[0]
    answers = [getattr(gate, kind)(host(1, number)) for number in range(SLOTS)]
    assert Refusal.SOURCES not in answers[:MAX_SOURCES]
    assert answers.count(Refusal.SOURCES) > SLOTS // 4
    for number in range(MAX_SOURCES):
        assert not isinstance(gate.admit(host(2, number)), Refusal)


def test_datagrams_and_connections_of_a_source_share_one_rate() -> None:
    gate = Gates(entry(rate_per_source="2/min", burst_per_source=2, on_limit="reject"), daemon())
    for number in range(2000):
        ways = [gate.gates[0].admit_datagram, gate.gates[0].admit]
        first, second = ways if number % 2 else reversed(ways)
        assert not isinstance(first(host(1, number)), Refusal)
        assert not isinstance(second(host(1, number)), Refusal)
        assert first(host(1, number)) is Refusal.SOURCE_RATE


def host(network: int, number: int) -> str:
    return f"10.{network}.{number >> 8}.{number & 255}"


def test_unix_peers_of_one_user_are_one_source() -> None:
    gate = Gates(entry(max_per_source=1, on_limit="reject"), daemon()).gates[0]
    assert not isinstance(gate.admit(UnixPeer(1000)), Refusal)
    assert gate.admit(UnixPeer(1000)) is Refusal.SOURCE_CONNECTIONS
    assert not isinstance(gate.admit(UnixPeer(1001)), Refusal)


def test_with_on_limit_wait_a_worker_reserves_a_slot_before_it_accepts() -> None:
    gates = Gates(entry(max_connections=1, rate="2/s", max_per_source=1), daemon())
    first, second = gates.gates
    assert first.reserve() == 0
    assert second.reserve() > 0
    first.unreserve()
    assert second.reserve() == 0
    ticket = second.admit(HOSTS[0])
    assert not isinstance(ticket, (Refusal, Unnamed))
    assert gates.active == 1
    second.leave(ticket)
    assert first.reserve() == 0
    gates.clock.now += 1
    assert gates.active == 1


def test_a_refused_client_returns_the_reserved_slot_and_token() -> None:
    gates = Gates(entry(max_connections=9, rate="1/min", burst=2, max_per_source=1), daemon())
    gate = gates.gates[0]
    assert gate.reserve() == 0
    assert not isinstance(gate.admit(HOSTS[0]), Refusal)
    for _ in range(5):
        assert gate.reserve() == 0  # each refusal returned the token
        assert gate.admit(HOSTS[0]) is Refusal.SOURCE_CONNECTIONS
    assert gates.active == 1


@pytest.mark.parametrize("limits", [{}, {"max_connections": 9}, {"rate": "5/s"}])
def test_a_handoff_counts_once_however_far_the_limits_are(limits: dict[str, object]) -> None:
    gates = Gates(entry(**limits), daemon())
    gate = gates.gates[0]
    for expected in (1, 2):
        assert gate.reserve_for_handoff() == 0
        gate.use_reserved()
        assert gates.active == expected
    gate.leave(NO_SOURCE)
    gate.leave(NO_SOURCE)
    assert gates.active == 0


def test_the_datagram_of_a_handoff_takes_one_token_and_a_refused_one_none() -> None:
    gates = Gates(entry(rate="1/min", burst=2, rate_per_source="1/min"), daemon())
    gate = gates.gates[0]
    assert gate.reserve_for_handoff() == 0
    assert gate.admit_datagram(HOSTS[0]) is None
    gate.use_reserved()
    for _ in range(5):
        assert gate.reserve_for_handoff() == 0
        assert gate.admit_datagram(HOSTS[0]) is Refusal.SOURCE_RATE
        gate.unreserve()
    assert gate.reserve_for_handoff() == 0
    gate.use_reserved()
    assert gate.reserve_for_handoff() > 0
    assert gates.active == 2


def ticket_awaiting_a_name(gate: Gate) -> Ticket:
    """Return the ticket of a client whose name must be looked up first."""
    assert gate.reserve() == 0
    answer = gate.admit(HOSTS[0])
    assert isinstance(answer, Unnamed)
    return answer.ticket


def test_a_client_keeps_its_slot_during_the_name_look_up_until_its_name_is_refused() -> None:
    limits = entry(max_connections=2, max_per_source=1, rate="1/min", burst=2, deny=[".bad"])
    gates = Gates(limits, daemon())
    gate = gates.gates[0]
    for _ in range(5):
        ticket = ticket_awaiting_a_name(gate)
        assert gates.active == 1
        assert gate.reserve() == 0
        assert gate.admit(HOSTS[0]) is Refusal.SOURCE_CONNECTIONS
        assert gate.admit_named(HOSTS[0], "host.bad", ticket) is Refusal.ACCESS
        assert gates.active == 0
    assert gate.admit_named(HOSTS[0], "host.good", ticket_awaiting_a_name(gate)) != NO_SOURCE
    assert gates.active == 1
    second = gate.reserve() or gate.admit(HOSTS[1])
    assert isinstance(second, Unnamed)
    assert gates.gates[1].reserve() > 0


def test_the_slots_of_a_dead_worker_are_free_again() -> None:
    gates = Gates(entry(max_connections=3, max_per_source=2, on_limit="reject"), daemon())
    for _ in range(2):
        assert not isinstance(gates.gates[0].admit(HOSTS[0]), Refusal)
    assert gates.gates[1].admit(HOSTS[0]) is Refusal.SOURCE_CONNECTIONS
    gates.vacate(0)
    for _ in range(2):
        assert not isinstance(gates.gates[1].admit(HOSTS[0]), Refusal)


def test_a_stuck_lock_refuses_clients_and_blocks_no_worker() -> None:
    gates = Gates(entry(max_connections=3, on_limit="reject"), daemon(rate="9/s"))
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        gates.ledger.lock.acquire()
        os.write(writer, b"locked")
        signal.pause()
    try:
        assert os.read(reader, 6) == b"locked"
        assert gates.gates[0].reserve() > 0
        assert gates.gates[0].admit(HOSTS[0]) is Refusal.BUSY
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)
    assert gates.gates[0].reserve() == 0  # the kernel released the lock of the dead process


# Against a model that keeps lists and adds fractions


@dataclass
class ModelBucket:
    """A token bucket in fractions; each event takes one token."""

    rate: Fraction
    burst: int
    tokens: Fraction = field(init=False)
    at: int = START_TIME

    def __post_init__(self) -> None:
        self.tokens = Fraction(self.burst)

    def refill(self, now: int) -> None:
        self.tokens = min(
            Fraction(self.burst), self.tokens + self.rate * Fraction(now - self.at, SECOND)
        )
        self.at = now


LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "max_connections": st.integers(1, 4),
        "max_per_source": st.integers(1, 3),
        # rates whose interval is a whole number of ns, so that the model rounds as the gate does
        "rate": st.sampled_from(["1/s", "2/s", "5/s", "60/min"]),
        "burst": st.integers(1, 4),
        "rate_per_source": st.sampled_from(["1/s", "2/s", "10/s"]),
        "burst_per_source": st.integers(1, 3),
    },
)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("connect"), st.sampled_from(HOSTS), st.integers(0, 1)),
        st.tuples(st.just("leave"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("time"), st.integers(0, 3 * SECOND), st.just(0)),
        st.tuples(st.just("crash"), st.integers(0, 1), st.just(0)),
    ),
    max_size=60,
)
RATES = {"1/s": 1, "2/s": 2, "5/s": 5, "60/min": 1, "10/s": 10}


def source(host: str) -> str:
    return host if "." in host else "2001:db8:1" if ":1::" in host else "2001:db8"


class Model:
    """The limits of one scope: of the service or the daemon."""

    def __init__(self, limits: dict[str, object]) -> None:
        self.limits = limits
        self.active: list[tuple[str, int]] = []
        self.bucket = self._bucket("rate", "burst")
        self.buckets: dict[str, ModelBucket] = {}

    def _bucket(self, rate: str, burst: str) -> ModelBucket | None:
        text = self.limits.get(rate)
        if text is None:
            return None
        per_second = RATES[str(text)]
        return ModelBucket(Fraction(per_second), int(str(self.limits.get(burst, per_second))))

    def buckets_of(self, host: str, now: int) -> Iterator[ModelBucket]:
        if self.bucket is not None:
            yield self.bucket
        if "rate_per_source" in self.limits:
            key = source(host)
            if key not in self.buckets:
                bucket = self._bucket("rate_per_source", "burst_per_source")
                assert bucket is not None
                bucket.at = now
                self.buckets[key] = bucket
            yield self.buckets[key]

    def admits(self, host: str, now: int) -> bool:
        for bucket in self.buckets_of(host, now):
            bucket.refill(now)
            if bucket.tokens < 1:
                return False
        of_source = [known for known, _ in self.active if known == source(host)]
        maximum = int(str(self.limits.get("max_connections", 99)))
        per_source = int(str(self.limits.get("max_per_source", 99)))
        return len(self.active) < maximum and len(of_source) < per_source

    def take(self, host: str, worker: int, now: int) -> None:
        for bucket in self.buckets_of(host, now):
            bucket.tokens -= 1
        self.active.append((source(host), worker))


@settings(max_examples=150, deadline=None)
@given(LIMITS, LIMITS, EVENTS)
def test_the_gate_agrees_with_a_naive_model_after_any_history(
    own: dict[str, object], overall: dict[str, object], events: list[tuple[str, object, int]]
) -> None:
    gates = Gates(entry(on_limit="reject", **own), daemon(**overall))
    models = [Model(own), Model(overall)]
    tickets: list[tuple[Ticket, int]] = []
    for kind, what, worker in events:
        now = gates.clock.now
        if kind == "time":
            gates.clock.now += int(str(what))
        elif kind == "crash":
            gates.vacate(int(str(what)))
            tickets = [(ticket, place) for ticket, place in tickets if place != what]
            for model in models:
                model.active = [(host, place) for host, place in model.active if place != what]
        elif kind == "leave" and tickets:
            number = int(str(what)) % len(tickets)
            ticket, place = tickets.pop(number)
            gates.gates[place].leave(ticket)
            for model in models:
                del model.active[number]
        elif kind == "connect":
            host = str(what)
            expected = all([model.admits(host, now) for model in models])  # noqa: C419  every model must refill
            answer = gates.gates[worker].admit(host)
            assert (not isinstance(answer, Refusal)) is expected
            if not isinstance(answer, (Refusal, Unnamed)):
                tickets.append((answer, worker))
                for model in models:
                    model.take(host, worker, now)
        assert gates.active == len(tickets)


def test_the_gate_uses_the_monotonic_clock() -> None:
    assert Counters._field_defaults == {"clock": time.monotonic_ns}


def test_a_service_and_the_daemon_have_the_same_keys_for_limits() -> None:
    assert set(Limits.model_fields) <= set(Service.model_fields) & set(Daemon.model_fields)
