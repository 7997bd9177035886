"""The documentation is true: examples are run, and every key, signal and exit code is in it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tomli

from superd.admission.refusals import Refusal
from superd.cli.commands import COMMANDS
from superd.config.model import Daemon, Rlimits, Service
from superd.errors import ExitCode
from superd.master.master import Master
from superd.observe.connections import End
from superd.plugin.registry import installed
from tests.conftest import Start
from tests.support.harness import exchange, make_plugin, superd

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted(file.name for file in ROOT.glob("*.md"))
EXAMPLE = ROOT / "conf" / "example.toml"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def copied(file: Path, directory: Path) -> Path:
    """Return a copy that belongs to the one who runs the tests, with its neighbours."""
    for neighbour in file.parent.iterdir():
        if neighbour.is_file():
            copy = directory / neighbour.name
            copy.write_bytes(neighbour.read_bytes())
            copy.chmod(0o600)
    return directory / file.name


@pytest.mark.parametrize("file", sorted((ROOT / "conf").glob("*.toml")), ids=lambda f: f.name)
def test_every_file_in_conf_passes_check(file: Path, tmp_path: Path) -> None:
    done = superd("check", str(copied(file, tmp_path)))
    assert (done.returncode, done.stdout, done.stderr) == (0, "configuration OK\n", "")


def test_the_configuration_in_the_readme_passes_check(tmp_path: Path) -> None:
    samples = [block for block in blocks("toml") if "[service." in block]
    assert samples
    file = tmp_path / "my.toml"
    file.write_text("\n".join(samples))
    file.chmod(0o600)
    done = superd("check", str(file))
    assert done.returncode == 0, done.stderr


def test_the_first_configuration_in_the_readme_runs_for_any_user(
    start_superd: Start, tmp_path: Path
) -> None:
    first = next(block for block in blocks("toml") if "[service." in block)
    ports = [int(port) for port in re.findall(r":(\d+)", first)]
    assert ports
    assert min(ports) >= 1024
    assert not re.search(r"//[^/]*:[a-z]", first)  # a bare machine has no /etc/services
    assert "user" not in first
    text = re.sub(r":\d+", ":0", first).replace("/tmp/", f"{tmp_path}/")
    assert exchange(start_superd(text).connect("echo"), b"hello") == b"hello"


def test_the_plugin_in_the_readme_serves(start_superd: Start, tmp_path: Path) -> None:
    (source,) = blocks("python")
    (project,) = [block for block in blocks("toml") if "entry-points" in block]
    entry_points = tomli.loads(project)["project"]["entry-points"]["superd"]
    assert entry_points == {"shout": "superd_shout"}
    make_plugin(tmp_path, "shout", source)
    superd = start_superd(
        """
        [service.shout]
        plugin = "shout"
        listen = "tcp://127.0.0.1:0"
        """,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert exchange(superd.connect("shout"), b"hello\nworld\n") == b"HELLO\nWORLD\n"


def test_the_plugin_in_the_readme_is_fully_typed(tmp_path: Path) -> None:
    (source,) = blocks("python")
    (tmp_path / "superd_shout.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", "cache", "superd_shout.py"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_example_explains_every_key() -> None:
    text = EXAMPLE.read_text()
    for model in (Daemon, Service, Rlimits):
        for field in model.model_fields.values():
            lines = re.findall(rf"^{field.alias} = .*", text, re.MULTILINE)
            assert lines or field.alias == "rlimits", field.alias
            assert field.description, field.alias


def test_the_example_has_every_option_of_the_bundled_plugins() -> None:
    text = EXAMPLE.read_text()
    for name, plugin in installed().items():
        if plugin.distribution == "superd":
            shown = superd("plugins", name).stdout
            for option in re.findall(r"^  ([a-z-]+) \(", shown, re.MULTILINE):
                is_table = f".options.{option}]" in text
                is_value = re.search(rf"(options = {{ |^){option} = ", text, re.MULTILINE)
                assert is_value or is_table, option


def test_the_readme_has_every_exit_code() -> None:
    table = set(map(int, re.findall(r"^\| (\d+) \|", README, re.MULTILINE)))
    assert table == {int(code) for code in ExitCode}


def test_the_readme_has_every_signal_that_the_master_handles() -> None:
    rows = re.findall(r"^\| ([A-Z0-9, ]+) \|", README, re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"[A-Z]{3}[A-Z0-9]*", row)}
    handlers = {name for name in vars(Master) if name.startswith("handle_")}
    assert {f"handle_{name.lower()}" for name in told} - {"handle_quit"} == handlers
    assert all(f"SIG{name}" in signal.Signals.__members__ for name in told)
    for name in handlers:
        assert getattr(Master, name).__doc__


def test_the_readme_has_every_reason_for_a_refusal_and_every_end() -> None:
    cells = "".join(re.findall(r"^\| (`.*?) \|", README, re.MULTILINE))
    words = set(re.findall(r"`([a-z-]+)`", cells))
    assert words == {refusal.value for refusal in Refusal}
    (told,) = re.findall(r"`end` is ([^.]+)\.", README)
    assert set(re.split(r",\s+|\s+or\s+", told)) == {end.value for end in End}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_to_a_file(document: str) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / document).read_text())
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_architecture_names_every_folder() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    packages = {file.parent.relative_to(ROOT) for file in (ROOT / "superd").rglob("__init__.py")}
    packages -= {Path("superd")}
    assert not [str(folder) for folder in packages if f"]({folder}/)" not in text]


def test_the_glossary_is_in_order_and_has_each_term_once() -> None:
    glossary = (ROOT / "ARCHITECTURE.md").read_text().partition("## Glossary")[2]
    terms = re.findall(r"^\| ([a-z][a-z ]*) \|", glossary, re.MULTILINE)
    assert len(terms) > 40
    assert terms == sorted(set(terms))


def test_the_guide_for_contributors_has_every_make_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (targets,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    assert set(re.findall(r"^\| `make ([a-z-]+)` \|", guide, re.MULTILINE)) == set(targets.split())


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_every_command_has_help(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "superd", name, "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert name in done.stdout
