"""Imports point down and form no circle; each folder belongs to one layer and one process.

Every import counts, also one that only a type checker sees: a reader of the file has to know it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "superd"
PLUGINS = ROOT / "plugins"

# Each layer may import itself and the layers after it.
LAYERS = (
    "cli", "client", "migrate", "master", "resolver", "worker", "listen", "process", "admission",
    "plugin", "observe", "config", "net", "errors",
)  # fmt: skip

MAX_LINES = 400


def module_name(file: Path) -> str:
    """Return the dotted name of a module below superd/ or plugins/."""
    base = ROOT if file.is_relative_to(CORE) else PLUGINS
    parts = file.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for top in (CORE, PLUGINS) for file in top.rglob("*.py")}


@cache
def imports_of(module: str) -> frozenset[str]:
    """Return the modules of superd and of its plugins that a module imports, wherever it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{module}: imports are absolute"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = whole & FILES.keys()
            found |= submodules or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(found & FILES.keys()) - {module}


def reachable(module: str) -> set[str]:
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        for name in imports_of(waiting.pop()) - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def layer_of(module: str) -> str:
    return module.split(".")[1]


def modules_of(layer: str) -> list[str]:
    return [name for name in FILES if name == f"superd.{layer}" or f"superd.{layer}." in name]


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_down_only(layer: str) -> None:
    modules = modules_of(layer)
    assert modules
    allowed = set(LAYERS[LAYERS.index(layer) :])
    above = {
        f"{module} -> {name}"
        for module in modules
        for name in imports_of(module)
        if name.startswith("superd.") and layer_of(name) not in allowed
    }
    assert not above


@pytest.mark.parametrize(
    "folder", [*LAYERS, *sorted(p.name for p in PLUGINS.iterdir() if p.is_dir())]
)
def test_no_imports_form_a_circle(folder: str) -> None:
    inside = [name for name in FILES if folder in name.split(".")[:2]]
    assert not {name for name in inside if name in reachable(name)}


def test_every_module_belongs_to_a_layer() -> None:
    names = {path.stem for path in CORE.iterdir() if not path.stem.startswith("_")}
    assert names - {"py"} == set(LAYERS)


def test_only_the_master_and_the_command_line_open_listening_sockets() -> None:
    users = {layer_of(name) for name in FILES for used in imports_of(name) if ".listen." in used}
    assert users == {"listen", "master", "cli"}


def test_the_clients_know_nothing_of_the_server() -> None:
    used = {layer_of(name) for module in modules_of("client") for name in imports_of(module)}
    assert used <= {"client", "config", "net", "process", "errors"}


@pytest.mark.parametrize("plugin", sorted({name.split(".")[0] for name in FILES} - {"superd"}))
def test_plugins_import_the_plugin_contract_only(plugin: str) -> None:
    modules = [name for name in FILES if name.split(".")[0] == plugin]
    used = {f"{module} -> {name}" for module in modules for name in imports_of(module)
            if name.split(".")[0] != plugin and name != "superd.plugin"}  # fmt: skip
    assert not used


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_module_says_what_it_is_and_stays_small(module: str) -> None:
    text = FILES[module].read_text()
    assert ast.get_docstring(ast.parse(text))
    assert text.count("\n") <= MAX_LINES


def test_the_command_line_starts_without_a_plugin_or_an_event_loop() -> None:
    code = "import sys, superd.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert not {name for name in modules if name.startswith("superd_")}
    assert not modules & {"asyncio", "uvloop", "pydantic"}


def test_only_the_resolver_loads_its_dns_library() -> None:
    code = "import sys, superd.master.start; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "superd.resolver.addresses" in modules
    assert not modules & {"aiodns", "pycares", "cffi"}
