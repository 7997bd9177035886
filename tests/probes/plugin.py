"""probes: runs ordinary operations of Python in its worker, one for each connection.

A client sends the name of a probe and receives `ok` or the exception; `?` lists the names.
"""

from __future__ import annotations

import inspect

from superd.plugin import Connection, Service, hookimpl
from tests.probes import errors, imports, loops, network, system, texts
from tests.probes.probe import PROBES, Probe

MODULES = (texts, errors, loops, network, system, imports)  # each adds its probes to PROBES


class Probes(Service):
    """Runs the probe that a client names."""

    name = "probes"

    async def stream(self, conn: Connection) -> None:
        name = (await conn.readline()).decode().strip()
        answer = "\n".join(PROBES) if name == "?" else await outcome(PROBES[name])
        await conn.send(answer.encode())


async def outcome(function: Probe) -> str:
    try:
        done = function()
        if inspect.isawaitable(done):
            await done
    except BaseException as error:  # noqa: BLE001  any exception is the outcome
        return f"{type(error).__name__}: {error}"
    return "ok"


@hookimpl
def superd_services() -> list[type[Service]]:
    return [Probes]
