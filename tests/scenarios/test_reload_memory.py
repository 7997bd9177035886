"""What a generation had is freed: the master does not grow with the number of reloads."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.harness import Superd
from tests.support.proc import memory

ENTRIES = 20_000
RELOADS = 6
MOST = RELOADS * 5_000  # kB by which the master may grow; the lists of one reload take 15,000

TOML = """
[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
RULES

[service.other]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
"""


def addresses() -> list[str]:
    return [f"198.{18 + n // 65536}.{n // 256 % 256}.{n % 256}" for n in range(ENTRIES)]


@pytest.fixture
def served(start_superd: Start, tmp_path: Path) -> Superd:
    """Serve a long list."""
    (tmp_path / "list").write_text("\n".join(addresses()))
    superd = start_superd(TOML.replace("RULES", f'deny-file = "{tmp_path}/list"'))
    assert superd.run("reload").returncode == 0  # there are two generations for a moment
    return superd


def test_lists_of_generations_that_drain_are_freed(served: Superd) -> None:
    before = memory(served.pid)
    with contextlib.ExitStack() as clients:
        for _ in range(RELOADS):
            client = clients.enter_context(served.connect("echo"))
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            assert served.run("reload").returncode == 0
        assert memory(served.pid) - before < MOST


@pytest.mark.parametrize("mistake", ["unknown = 1", 'listen = "tcp://192.0.2.77:9"'])
def test_reloads_that_fail_leave_nothing(served: Superd, mistake: str) -> None:
    served.toml += f'\n[service.wrong]\nplugin = "echo"\n{mistake}\n'
    served.write()
    before = memory(served.pid)
    for _ in range(RELOADS):
        assert served.run("reload").returncode != 0
    assert memory(served.pid) - before < MOST


def test_services_that_are_disabled_and_enabled_leave_nothing(served: Superd) -> None:
    before = memory(served.pid)
    for word in ("disable", "enable") * (RELOADS // 2):
        assert served.run(word, "other").returncode == 0
    assert memory(served.pid) - before < MOST
