"""Active probes: whether a target serves, asked again and again, without a client's help."""

from __future__ import annotations

import asyncio
import random
import socket
from functools import partial
from typing import Annotated

from pydantic import Field

from superd.plugin import (
    Options,
    PositiveDuration,
    reset_on_close,
)
from superd_forward.context import Context
from superd_forward.targets import Target

MOST_EXPECTED = 4096  # bytes that are read until the answer is not the expected one


class Probe(Options):
    every: Annotated[PositiveDuration, Field(description="from one probe to the next")] = 5.0
    timeout: Annotated[PositiveDuration, Field(description="for one probe")] = 2.0
    send: Annotated[str, Field(description="what is sent once it is connected")] = ""
    expect: Annotated[str, Field(description="what its answer has to hold; empty for any")] = ""
    fall: Annotated[int, Field(ge=1, description="failures in a row until it is down")] = 3
    rise: Annotated[int, Field(ge=1, description="successes in a row until it is up again")] = 2


async def keep_probing(target: Target, probe: Probe, context: Context, header: bytes) -> None:
    """Probe a target for ever; workers and targets each at their own moment. `header` precedes
    what is sent.
    """
    in_a_row = 0
    was_good = True
    await asyncio.sleep(random.uniform(0, probe.every / 10))  # noqa: S311  no secret
    while True:
        try:
            why = await asyncio.wait_for(_ask(target, probe, context, header), probe.timeout)
        except TimeoutError:
            why = "no answer in time"
        except OSError as error:
            why = error.strerror or str(error)
        except Exception as error:  # noqa: BLE001  the next probe may go well
            why = f"cannot be probed: {error!r}"
        in_a_row = in_a_row + 1 if was_good == (not why) else 1
        was_good = not why
        if in_a_row >= (probe.rise if was_good else probe.fall):
            target.probed(why)
        await asyncio.sleep(probe.every)


async def _ask(target: Target, probe: Probe, context: Context, header: bytes) -> str:
    """Connect, send and read; return what is wrong, or nothing."""
    loop = asyncio.get_running_loop()
    way = target.way
    if way is None:
        found: asyncio.Future[tuple[str, ...]] = loop.create_future()
        context.look_up(target.host, partial(_settle, found))
        hosts = await found
        if not hosts:
            return "its name has no address"
        way = target.at(hosts[0])
    with socket.socket(fileno=context.connect(way).detach()) as sock:
        if not way.is_unix:  # where it is done, or has failed, at once
            await loop.sock_connect(sock, way.sockaddr)
        if question := header + probe.send.encode():
            await loop.sock_sendall(sock, question)
        why = await _expectation(sock, probe.expect.encode()) if probe.expect else ""
        reset_on_close(sock)  # so that no port is left waiting
        return why


def _settle(found: asyncio.Future[tuple[str, ...]], hosts: tuple[str, ...]) -> None:
    if not found.done():
        found.set_result(hosts)


async def _expectation(sock: socket.socket, expected: bytes) -> str:
    """Read until what is expected has come, of datagrams one; return what is wrong, or nothing."""
    loop = asyncio.get_running_loop()
    answer = b""
    while len(answer) < MOST_EXPECTED:
        more = await loop.sock_recv(sock, MOST_EXPECTED)
        answer += more
        if expected in answer:
            return ""
        if not more or sock.type is socket.SOCK_DGRAM:
            break
    return f"it answered {answer[:60]!r}" if answer else "it answered nothing"
