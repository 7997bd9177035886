"""A plugin that runs the Python code that a test sends it, with the rights of any plugin.

The plugin runs in a worker of the real daemon, `run_inside` in the test's process.
"""

from __future__ import annotations

import json
from typing import Any

from tests.support.harness import Superd, exchange

INSIDE = """
    import asyncio, codecs, ctypes, errno, json, os, resource, socket, stat, sys, threading, time
    from superd.plugin import Service, hookimpl

    class Inside(Service):
        name = "inside"

        async def stream(self, conn):
            names = dict(globals())
            code = compile(await conn.read(), "sent", "exec")
            exec(code, names)
            await conn.send(json.dumps(names["result"]).encode())

    @hookimpl
    def superd_services():
        return [Inside]
"""


def run_inside(superd: Superd, service: str, code: str) -> Any:
    """Run code in a service's worker and return the value of its variable `result`."""
    return json.loads(exchange(superd.connect(service), code.encode()))
