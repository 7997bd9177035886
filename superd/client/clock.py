"""`superd clock`: measures how far another host's clock is from this one (RFC 868).

Runs in the command line. Never sets a clock. The time protocol has whole seconds, and only their
lowest 32 bits. The client chooses the time nearest to its own clock, so it works past February
2036. Raises UsageError, SuperdError.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from superd.client.packets import NoAnswer, ask
from superd.client.reaching import Deadline, connect, datagram_sockets, duration, parse
from superd.errors import ExitCode, SuperdError, UsageError, reason
from superd.net.addresses import Transport
from superd.net.destinations import Destination

PORT = 37
SECONDS_1900_TO_1970 = 2_208_988_800
ANSWER_SIZE = 4  # bytes
ATTEMPTS = 4  # requests, of which the fastest answer counts
DEFAULT_TIMEOUT = 2.0  # seconds
MAX_READ_SIZE = 512  # bytes of an answer, which may be a wrong one


@dataclass(frozen=True)
class Reading:
    """One answer of another clock, and when it was asked by this one."""

    number: int  # the answer: seconds since 1900, modulo 2**32
    middle: float  # seconds since 1970, halfway between request and answer
    round_trip: float  # seconds
    host: str

    @property
    def offset(self) -> float:
        """Seconds that the other clock is ahead of this one.

        Taken in the middle of the round trip. On average half of its second has passed by then.
        """
        here = self.middle + SECONDS_1900_TO_1970
        difference = (self.number - int(here) + 2**31) % 2**32 - 2**31
        return difference + 0.5 - here % 1


def clock(host: str, *, by_tcp: bool, timeout: str | None) -> int:
    """Print the difference between another host's clock and this one."""
    target = parse(host, port=PORT)
    if target.transport not in (None, Transport.TCP, Transport.UDP):
        raise UsageError(f"the time protocol runs over udp and tcp; found {target}")
    by_tcp = by_tcp or target.transport is Transport.TCP
    target = replace(target, transport=Transport.TCP if by_tcp else Transport.UDP)
    best = _best(target, by_tcp, duration("--timeout", timeout, DEFAULT_TIMEOUT) or DEFAULT_TIMEOUT)
    direction = "ahead of" if best.offset >= 0 else "behind"
    print(
        f"{host} is {abs(best.offset):.1f} s {direction} this clock"
        f" (round trip {best.round_trip * 1000:.1f} ms);"
        " the protocol has whole seconds, so the error is up to 0.5 s"
    )
    return int(ExitCode.OK)


def _best(target: Destination, by_tcp: bool, seconds: float) -> Reading:
    """Ask several times and return the fastest answer.

    A datagram may be lost, so each has only a share of the time. A late answer cannot be mistaken
    for the next one, which has another source port.
    """
    deadline = Deadline(seconds)
    readings: list[Reading] = []
    for _ in range(ATTEMPTS):
        try:
            if by_tcp:
                reading = _read_tcp(target, deadline)
            else:
                reading = _read_udp(target, Deadline(seconds / ATTEMPTS))
        except NoAnswer:
            continue
        except SuperdError:
            if readings:
                break  # the server limits how often it may be asked
            raise
        readings.append(reading)
        if not target.path:
            target = replace(target, host=reading.host)  # look a name up once
    if not readings:
        raise NoAnswer(f"no answer from {target} in {deadline}")
    return min(readings, key=lambda reading: reading.round_trip)


def _read_udp(target: Destination, deadline: Deadline) -> Reading:
    # as long as the answer: some servers never answer with more bytes than they received
    answer = ask(target, datagram_sockets(target, deadline), bytes(ANSWER_SIZE), deadline)
    return _reading(target, answer.data, answer.address.host, answer.asked_at, answer.round_trip)


def _read_tcp(target: Destination, deadline: Deadline) -> Reading:
    connection, address = connect(target, deadline)
    with connection:
        connection.settimeout(deadline.left_to_wait)
        asked_at, start, data = time.time(), time.monotonic(), b""
        round_trip = 0.0
        try:
            while len(data) <= MAX_READ_SIZE and (part := connection.recv(MAX_READ_SIZE)):
                data += part
                round_trip = round_trip or time.monotonic() - start
        except TimeoutError:
            if not data:
                raise NoAnswer(f"no answer from {target} in {deadline}") from None
        except OSError as error:
            raise SuperdError(f"{target} broke the connection: {reason(error)}") from None
    if not data:
        raise SuperdError(f"{target} closed the connection without an answer")
    return _reading(target, data, address.host, asked_at, round_trip)


def _reading(
    target: Destination, data: bytes, host: str, asked_at: float, round_trip: float
) -> Reading:
    if len(data) != ANSWER_SIZE:
        raise SuperdError(
            f"{target} does not speak the time protocol:"
            f" it answered with {len(data)} bytes instead of {ANSWER_SIZE}"
        )
    return Reading(int.from_bytes(data, "big"), asked_at + round_trip / 2, round_trip, host)
