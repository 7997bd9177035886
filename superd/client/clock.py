"""`superd clock`: how far another host's clock is from this one, by the time protocol (RFC 868).

Runs in the command line. Never sets a clock. The protocol tells whole seconds, and only their last
32 bits: taken is the second that is nearest to this clock, so that it works past February 2036.
Raises UsageError, SuperdError.
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
SIZE = 4  # bytes of an answer
TRIES = 4
PATIENCE = 2.0  # seconds
MOST = 512  # bytes that are read of a wrong answer


@dataclass(frozen=True)
class Reading:
    """What another clock has said, when by this one, and how long it took to be told."""

    number: int
    middle: float  # seconds since 1970, halfway between question and answer
    round_trip: float
    host: str

    @property
    def offset(self) -> float:
        """Seconds that the other clock is ahead of this one.

        It is read in the middle of the round trip, and its second is over by half on average.
        """
        here = self.middle + SECONDS_1900_TO_1970
        difference = (self.number - int(here) + 2**31) % 2**32 - 2**31
        return difference + 0.5 - here % 1


def clock(host: str, *, by_tcp: bool, timeout: str | None) -> int:
    """Print the difference between another host's clock and this one."""
    target = parse(host, port=PORT)
    if target.transport not in (None, Transport.TCP, Transport.UDP):
        raise UsageError(f"the time protocol goes by udp and tcp, not by {target}")
    by_tcp = by_tcp or target.transport is Transport.TCP
    target = replace(target, transport=Transport.TCP if by_tcp else Transport.UDP)
    best = _best(target, by_tcp, duration("--timeout", timeout, PATIENCE) or PATIENCE)
    direction = "ahead of" if best.offset >= 0 else "behind"
    print(
        f"{host} is {abs(best.offset):.1f} s {direction} this clock"
        f" (round trip {best.round_trip * 1000:.1f} ms);"
        " the protocol has whole seconds, so the error is up to 0.5 s"
    )
    return int(ExitCode.OK)


def _best(target: Destination, by_tcp: bool, patience: float) -> Reading:
    """Ask several times and return the answer that came fastest.

    Datagrams are lost: none is waited for longer than its share of the time. An answer that comes
    later does not meet the next question, which has another port.
    """
    everything = Deadline(patience)
    readings: list[Reading] = []
    for _ in range(TRIES):
        try:
            if by_tcp:
                reading = _read_tcp(target, everything)
            else:
                reading = _read_udp(target, Deadline(patience / TRIES))
        except NoAnswer:
            continue
        except SuperdError:
            if readings:
                break  # it limits how often it is asked
            raise
        readings.append(reading)
        if not target.path:
            target = replace(target, host=reading.host)  # a name is looked up once
    if not readings:
        raise NoAnswer(f"no answer from {target} in {everything}")
    return min(readings, key=lambda reading: reading.round_trip)


def _read_udp(target: Destination, deadline: Deadline) -> Reading:
    # as long as the answer: some answer nobody with more bytes than they were asked with
    answer = ask(target, datagram_sockets(target, deadline), bytes(SIZE), deadline)
    return _reading(target, answer.data, answer.address.host, answer.asked_at, answer.round_trip)


def _read_tcp(target: Destination, deadline: Deadline) -> Reading:
    connection, address = connect(target, deadline)
    with connection:
        connection.settimeout(deadline.left_to_wait)
        asked_at, start, data = time.time(), time.monotonic(), b""
        round_trip = 0.0
        try:
            while len(data) <= MOST and (part := connection.recv(MOST)):
                data += part
                round_trip = round_trip or time.monotonic() - start
        except TimeoutError:
            if not data:
                raise NoAnswer(f"no answer from {target} in {deadline}") from None
        except OSError as error:
            raise SuperdError(f"{target} broke the connection: {reason(error)}") from None
    if not data:
        raise SuperdError(f"{target} does not know the time: it closed without an answer")
    return _reading(target, data, address.host, asked_at, round_trip)


def _reading(
    target: Destination, data: bytes, host: str, asked_at: float, round_trip: float
) -> Reading:
    if len(data) != SIZE:
        raise SuperdError(
            f"{target} does not speak the time protocol:"
            f" it answered with {len(data)} bytes instead of {SIZE}"
        )
    return Reading(int.from_bytes(data, "big"), asked_at + round_trip / 2, round_trip, host)
