"""Active probes: periodic checks of whether a target serves.

Runs in a worker, as a task for each target.
"""

from __future__ import annotations

import asyncio
import random
import socket
from functools import partial
from typing import Annotated

from pydantic import Field

from superd.plugin import Options, PositiveDuration, reset_on_close
from superd_forward.context import Context
from superd_forward.targets import Target

MAX_ANSWER_BYTES = 4096  # read in search of the expected text


class Probe(Options):
    every: Annotated[PositiveDuration, Field(description="from one probe to the next")] = 5.0
    timeout: Annotated[PositiveDuration, Field(description="for one probe")] = 2.0
    send: Annotated[str, Field(description="text to send once connected")] = ""
    expect: Annotated[str, Field(description="text the answer has to contain; empty for any")] = ""
    fall: Annotated[int, Field(ge=1, description="failures in a row until a target is down")] = 3
    rise: Annotated[int, Field(ge=1, description="successes in a row until it is up again")] = 2


async def keep_probing(target: Target, probe: Probe, context: Context, header: bytes) -> None:
    """Probe a target until cancelled. `header` precedes the text to send.

    The first probe is delayed at random, so that workers do not probe in the same moment.
    """
    results_in_a_row = 0
    was_up = True
    await asyncio.sleep(random.uniform(0, probe.every / 10))  # noqa: S311  no secret
    while True:
        try:
            async with asyncio.timeout(probe.timeout):
                problem = await _probe_once(target, probe, context, header)
        except TimeoutError:
            problem = "no answer in time"
        except OSError as error:
            problem = error.strerror or str(error)
        except Exception as error:  # noqa: BLE001  the next probe may succeed
            problem = f"cannot be probed: {error!r}"
        results_in_a_row = results_in_a_row + 1 if was_up == (not problem) else 1
        was_up = not problem
        if results_in_a_row >= (probe.rise if was_up else probe.fall):
            target.probed(problem)
        await asyncio.sleep(probe.every)


async def _probe_once(target: Target, probe: Probe, context: Context, header: bytes) -> str:
    """Connect, send and read; return the problem, or "". Raises OSError."""
    loop = asyncio.get_running_loop()
    address = target.address
    if address is None:
        found: asyncio.Future[tuple[str, ...]] = loop.create_future()
        context.look_up(target.host, partial(_settle, found))
        hosts = await found
        if not hosts:
            return "its name has no address"
        address = target.address_at(hosts[0])
    with socket.socket(fileno=context.connect(address).detach()) as sock:
        if not address.is_unix:  # a unix socket has connected or failed without delay
            await loop.sock_connect(sock, address.sockaddr)
        if data := header + probe.send.encode():
            await loop.sock_sendall(sock, data)
        problem = await _check_answer(sock, probe.expect.encode()) if probe.expect else ""
        reset_on_close(sock)  # leaves no port in TIME-WAIT
        return problem


def _settle(found: asyncio.Future[tuple[str, ...]], hosts: tuple[str, ...]) -> None:
    if not found.done():
        found.set_result(hosts)


async def _check_answer(sock: socket.socket, expected: bytes) -> str:
    """Read until the expected text has arrived, or one datagram; return the problem, or ""."""
    loop = asyncio.get_running_loop()
    answer = b""
    while len(answer) < MAX_ANSWER_BYTES:
        more = await loop.sock_recv(sock, MAX_ANSWER_BYTES)
        answer += more
        if expected in answer:
            return ""
        if not more or sock.type is socket.SOCK_DGRAM:
            break
    return f"it answered {answer[:60]!r}" if answer else "it answered nothing"
