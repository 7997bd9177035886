"""A client that a service cannot know to be on its machine: it asks no loopback address.

Needs root, for a network namespace.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from tests.conftest import Start
from tests.support.harness import EVENT_TIMEOUT, Superd
from tests.support.namespaces import network_namespace

ADDRESS = ("192.0.2.1", 7000)


@contextlib.contextmanager
def stranger(start: Start, plugin: str, more: str = "") -> Iterator[tuple[Superd, socket.socket]]:
    """Serve a plugin by udp, as a service of its name; yield superd and a client's socket."""
    with network_namespace() as space:
        space.add_address(ADDRESS[0])
        toml = f'[service.{plugin}]\nplugin = "{plugin}"\nlisten = "udp://*:{ADDRESS[1]}"\n{more}'
        served = start(toml, *space.wrapper)
        with space.inside():
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with client:
            client.settimeout(EVENT_TIMEOUT)
            client.connect(ADDRESS)
            yield served, client
        served.stop()
