"""Configurations for tests of jails: all bundled plugins, and plugins that fail in a jail."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from tests.support.clients import connect_unix
from tests.support.harness import Superd, ask_udp, exchange, make_plugin, until

BUNDLED_PLUGINS = ("echo", "discard", "chargen", "daytime", "time", "qotd", "message")
RESET = (b"", "reset")
QUOTE = b"Read before the worker was confined."


def all_plugins(jail: Path, sockets: Path, loop: str = "auto") -> str:
    """Return a configuration of all bundled plugins, on every transport, in a jail."""
    parts = [f'[daemon]\nloop = "{loop}"\n[defaults]\nchroot = "{jail}"\namplify = true\n']
    parts += [
        f'[service.{name}]\nplugin = "{name}"\n'
        f'listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0", "unix://{sockets}/{name}"]\n'
        for name in BUNDLED_PLUGINS
    ]
    quotes = sockets / "quotes"
    quotes.write_bytes(QUOTE + b"\n%\n")
    text = "\n".join(parts)
    return text.replace('plugin = "qotd"', f'plugin = "qotd"\noptions = {{ quotes = "{quotes}" }}')


def over_tcp(superd: Superd, name: str, data: bytes) -> bytes:
    return exchange(superd.connect(name), data)


def over_udp(superd: Superd, name: str, data: bytes) -> bytes:
    if name == "discard":  # sends no answer; the counter shows that it was received
        host, port = superd.address(name, "udp")
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.sendto(data, (host, port))
        until(lambda: superd.counts(name)["datagrams"], "a datagram to be counted")
        return b""
    return ask_udp(superd.address(name, "udp"), data)


def over_unix(superd: Superd, name: str, data: bytes) -> bytes:
    return exchange(connect_unix(superd.directory.parent / name), data)


def start_of_chargen(superd: Superd, ask: Callable[[Superd, str, bytes], bytes]) -> bytes:
    """Return the start of chargen's output; on a stream it never ends by itself."""
    if ask is over_udp:
        return ask(superd, "chargen", b"x")
    sock = superd.connect("chargen") if ask is over_tcp else None
    with sock or connect_unix(superd.directory.parent / "chargen") as client:
        return client.recv(1000, socket.MSG_WAITALL)


FAILING = """
    import json
    from superd.plugin import Service, hookimpl

    class Failing(Service):
        name = "failing"

        async def stream(self, conn):
            line = await conn.readline(100)
            self.fail(line.strip())

        def fail(self, line):
            number = json.loads(line)  # the line that fails

    @hookimpl
    def superd_services():
        return [Failing]
"""


LATE = """
    from superd.plugin import Service, hookimpl

    class Late(Service):
        name = "late"

        async def stream(self, conn):
            name = (await conn.read()).decode()
            if name.startswith("encodings."):
                await conn.send("\\u3042".encode(name.partition(".")[2]))
            else:
                module = __import__(name)
                await conn.send(module.__name__.encode())

    class Early(Late):
        name = "early"
        preload = ("colorsys", "encodings.shift_jis")

    @hookimpl
    def superd_services():
        return [Late, Early]
"""


def services_late_and_early(tmp_path: Path, jail: str) -> tuple[str, dict[str, str]]:
    for name in ("late", "early"):
        env = make_plugin(tmp_path / name, name, LATE.replace("[Late, Early]", f"[{name.title()}]"))
    path = os.pathsep.join([str(tmp_path / "late"), env["PYTHONPATH"]])
    toml = "\n".join(
        f'[service.{name}]\nplugin = "{name}"\nlisten = "tcp://127.0.0.1:0"\n'
        f'chroot = "{jail}"\npool = "{name}"\n'
        for name in ("late", "early")
    )
    return toml, {**env, "PYTHONPATH": path}
