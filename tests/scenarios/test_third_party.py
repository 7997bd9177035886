"""A third-party plugin: installed by pip, and served without any change of superd."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness import Superd, exchange

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "tests" / "third_party" / "superd-shout"

TOML = """
[service.shout]
plugin = "shout"
listen = "tcp://127.0.0.1:0"

[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of a fresh environment with superd and the third-party distribution.

    superd and its dependencies come from the environment that runs the tests: nothing is
    downloaded.
    """
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, with_pip=False)
    python = directory / "bin" / "python"
    site = next(directory.glob("lib/python*/site-packages"))
    ours = sysconfig.get_path("purelib")
    (site / "superd.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    assert "shout" not in superd(str(python), "plugins")
    install(str(python), PROJECT)
    return str(python)


def install(python: str, project: Path) -> None:
    """Install a distribution, or a newer version of it."""
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--upgrade"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, *offline, str(project)], check=True, timeout=120)


def superd(python: str, *arguments: str) -> str:
    command = [python, "-m", "superd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def served(python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Superd]:
    instance = Superd(tmp_path_factory.mktemp("superd"), TOML, python=python)
    try:
        yield instance.start()
    finally:
        instance.stop()


def test_a_third_party_plugin_serves_clients(served: Superd) -> None:
    assert exchange(served.connect("shout"), b"hello\nworld\n") == b"HELLO\nWORLD\n"
    assert exchange(served.connect("echo"), b"as before") == b"as before"


def test_a_third_party_plugin_is_listed_with_its_distribution_and_version(python: str) -> None:
    assert re.search(r"^shout +superd-shout +1\.0 +stream +-$", superd(python, "plugins"), re.M)
    (shout,) = [p for p in json.loads(superd(python, "plugins", "--json")) if p["name"] == "shout"]
    assert (shout["distribution"], shout["version"]) == ("superd-shout", "1.0")


def test_superd_plugins_describes_a_third_party_plugin(python: str) -> None:
    output = superd(python, "plugins", "shout")
    assert "superd-shout 1.0 (superd_shout)" in output
    assert "Answers every line in capitals." in output


def test_the_readme_shows_the_source_of_this_plugin() -> None:
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert (PROJECT / "superd_shout.py").read_text() == source


def test_a_newer_version_serves_after_a_reload_and_old_connections_finish_with_the_old_one(
    served: Superd, python: str, tmp_path: Path
) -> None:
    newer = tmp_path / "superd-shout"
    shutil.copytree(PROJECT, newer)
    for name, old, new in [
        ("pyproject.toml", 'version = "1.0"', 'version = "2.0"'),
        ("superd_shout.py", "line.upper()", 'line.upper() + b"!"'),
    ]:
        text = (newer / name).read_text()
        assert old in text
        (newer / name).write_text(text.replace(old, new))
    with served.connect("shout") as before:
        before.sendall(b"one\n")
        assert before.recv(100) == b"ONE\n"
        install(python, newer)
        assert exchange(served.connect("shout"), b"two\n") == b"TWO\n"  # not reloaded yet
        done = served.run("reload")
        assert (done.returncode, done.stdout) == (0, "unchanged: 2 services\n")
        assert exchange(served.connect("shout"), b"three\n") == b"THREE\n!"
        before.sendall(b"four\n")
        assert before.recv(100) == b"FOUR\n"
    assert re.search(r"^shout +superd-shout +2\.0 ", superd(python, "plugins"), re.M)
