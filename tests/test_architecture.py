"""Imports point down only, and the master imports no plugin."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "superd"

# who may import whom: a layer may import itself and those after it
LAYERS = (
    "cli", "client", "master", "resolver", "worker", "admission", "plugin", "observe", "config",
    "net", "errors",
)  # fmt: skip
EXTRA = {("net", "config")}  # a listener is made as its entry says


def imports_of(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("superd.")}


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_down_only(layer: str) -> None:
    files = [ROOT / f"{layer}.py"] if layer == "errors" else list((ROOT / layer).rglob("*.py"))
    assert files
    allowed = set(LAYERS[LAYERS.index(layer) :])
    allowed |= {target for source, target in EXTRA if source == layer}
    for file in files:
        assert imports_of(file) <= allowed, file


def test_the_clients_know_nothing_of_the_server() -> None:
    for file in (ROOT / "client").glob("*.py"):
        assert imports_of(file) <= {"client", "config", "net", "errors"}, file


def test_every_module_belongs_to_a_layer() -> None:
    names = {path.stem for path in ROOT.iterdir() if not path.stem.startswith("_")}
    assert names - {"py"} == set(LAYERS)


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=str)
def test_module_says_what_it_is_and_stays_small(file: Path) -> None:
    text = file.read_text()
    assert ast.get_docstring(ast.parse(text))
    assert text.count("\n") <= 400


def test_the_command_line_starts_without_a_plugin_or_an_event_loop() -> None:
    code = "import sys, superd.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert not {name for name in modules if name.startswith("superd_")}
    assert not modules & {"asyncio", "uvloop", "pydantic"}


def test_only_the_resolver_loads_what_it_asks_name_servers_with() -> None:
    code = "import sys, superd.master.start; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "superd.resolver.addresses" in modules
    assert not modules & {"aiodns", "pycares", "cffi"}
