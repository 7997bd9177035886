"""One service entry as a worker serves it: the plugin's object, its settings and its counters.

Runs in the worker. Never raises.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from superd.config.model import Service as Entry
from superd.plugin.connection import Connection
from superd.plugin.service import Packet, Request, Service

Talk = Coroutine[Any, Any, None]


@dataclass(frozen=True, eq=False)
class Serving:
    """What every connection and datagram of a service shares. `counts` is indexed by `Count`.

    The methods that the plugin has are looked up once; the others are None.
    """

    name: str
    entry: Entry
    plugin: Service
    counts: memoryview
    protocol: Callable[[Connection], asyncio.Protocol] | None
    stream: Callable[[Connection], Talk] | None
    takeover: Callable[[socket.socket, Connection], Talk] | None
    respond: Callable[[Request], bytes] | None
    datagram: Callable[[Packet], bytes | None] | None

    @classmethod
    def of(cls, name: str, entry: Entry, plugin: Service, counts: memoryview) -> Serving:
        names = ("protocol", "stream", "takeover", "respond", "datagram")
        methods = {method: getattr(plugin, method, None) for method in names}
        return cls(name, entry, plugin, counts, **methods)
