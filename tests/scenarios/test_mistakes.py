"""Mistakes of a plugin that would be silent: each is an error that says what to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.harness import Superd, exchange, make_plugin

SILENT = """
    import asyncio
    from superd.plugin import Connection, Service, hookimpl

    async def fail(text):
        raise RuntimeError(text)

    class Silent(Service):
        name = "silent"

        def start(self):
            self.kept = asyncio.get_running_loop().create_task(fail("kept from the start"))

        async def stream(self, conn: Connection):
            async for line in conn:
                await getattr(self, line.decode().strip())(conn)
                await conn.send(b"done\\n")

        async def look(self, conn):
            self.look_up("localhost", print)

        async def host(self, conn):
            self.name_of(conn.peer, print)

        async def task(self, conn):
            self.another = asyncio.create_task(fail("kept from a handler"))

        async def awaited(self, conn):
            tasks = [asyncio.create_task(fail(word)) for word in ("awaited", "gathered")]
            await asyncio.gather(*tasks, return_exceptions=True)

    @hookimpl
    def superd_services():
        return [Silent]
"""

TOML = """
[daemon]
loop = "LOOP"

[service.silent]
plugin = "silent"
listen = "tcp://127.0.0.1:0"

[service.named]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
allow = ["localhost"]
"""


@pytest.fixture(params=["uvloop", "asyncio"])
def served(request: pytest.FixtureRequest, start_superd: Start, tmp_path: Path) -> Superd:
    env = make_plugin(tmp_path / "plugins", "silent", SILENT)
    return start_superd(TOML.replace("LOOP", request.param), env=env)


@pytest.mark.parametrize(("word", "method"), [("look", "look_up"), ("host", "name_of")])
def test_a_look_up_without_looks_up_is_an_error(served: Superd, word: str, method: str) -> None:
    with served.connect("silent") as client:
        client.sendall(f"{word}\n".encode())
        text = rf"Silent.{method}\(\) needs a resolver: set looks_up = True in the class"
        served.wait_for_log(text)


def test_a_task_that_fails_is_reported_though_the_plugin_keeps_it(served: Superd) -> None:
    assert exchange(served.connect("silent"), b"awaited\ntask\n") == b"done\ndone\n"
    what = r"task Task-\d+ failed, and no code awaits it: RuntimeError: "
    served.wait_for_log(what + "kept from the start service=silent")
    served.wait_for_log(what + "kept from a handler.* service=silent")
    assert served.run("stop").returncode == 0
    for word in ("awaited", "gathered"):
        assert f"RuntimeError: {word}" not in served.log()
