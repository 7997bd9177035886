"""`superd plugins`: lists the plugins without importing them, and shows the options of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from superd.plugin.registry import installed
from tests.cli.conftest import Install, Say
from tests.config.configurations import written

BUNDLED = ("chargen", "daytime", "discard", "echo", "message", "qotd", "time")

WITH_OPTIONS = """
from typing import Annotated, Literal

from pydantic import Field
from superd.plugin import Duration, Options, Service, Size, hookimpl


class Inner(Options):
    host: str


class GreedyOptions(Options):
    command: Annotated[list[str], Field(description="what to run", examples=[["/bin/true"]])]
    how: Annotated[Literal["fast", "slow"], Field(description="in which way")]
    many: Annotated[int, Field(ge=3, le=9, description="how often")]
    to: str
    every: Annotated[Duration, Field(description="how long between")]
    buffer: Annotated[Size, Field(description="bytes kept")] = 65536
    patience: Annotated[Duration, Field(description="until it is given up")] = 90.0
    loud: bool = False
    ratio: float = 0.5
    inner: Inner | None = None


class Greedy(Service):
    '''Wants a lot.

    And says so at length.
    '''

    name = "greedy"
    options_model = GreedyOptions

    async def stream(self, conn):
        pass


@hookimpl
def superd_services():
    return [Greedy]
"""


def test_the_list_has_name_distribution_version_kind_and_use(
    tmp_path: Path, superd_here: Say
) -> None:
    text = '[service.{0}]\nplugin = "echo"\nlisten = "unix://@{0}"\n'
    file = written(tmp_path, text.format("one") + text.format("two"))
    done = superd_here("plugins", "-c", str(file))
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert lines["NAME"].split() == ["NAME", "DISTRIBUTION", "VERSION", "KIND", "USED", "BY"]
    assert set(BUNDLED) <= set(lines)
    assert lines["echo"].split(maxsplit=3)[1] == "superd"
    assert lines["echo"].endswith("stream, datagram  one, two")
    assert lines["qotd"].endswith("-")


def test_the_list_is_available_as_json(tmp_path: Path, superd_here: Say) -> None:
    file = written(tmp_path, '[service.a]\nplugin = "time"\nlisten = "unix://@a"\n')
    rows = json.loads(superd_here("plugins", "--json", "-c", str(file)).stdout)
    [row] = [row for row in rows if row["name"] == "time"]
    version = row.pop("version")
    assert version[0].isdigit()
    assert row == {
        "name": "time",
        "distribution": "superd",
        "module": "superd_time",
        "kinds": ["stream", "datagram"],
        "used-by": ["a"],
    }


def test_list_and_check_import_no_plugin_that_is_not_named(
    tmp_path: Path, install: Install, superd_here: Say
) -> None:
    trace = tmp_path / "trace"
    install("tracing", f"open({str(trace)!r}, 'w')\nclass A:\n    def datagram(self): pass")
    done = superd_here("plugins")
    [line] = [line for line in done.stdout.splitlines() if line.startswith("tracing")]
    assert line.split() == ["tracing", "superd-tracing", "1.0", "datagram", "-"]
    file = written(tmp_path, '[service.a]\nplugin = "echo"\nlisten = "unix://@a"\n')
    assert superd_here("check", str(file)).returncode == 0
    assert not trace.exists()
    assert superd_here("plugins", "tracing").returncode == 1  # this one asks for it
    assert trace.exists()


def test_the_kinds_of_a_plugin_are_read_from_a_package_too(
    tmp_path: Path, install: Install
) -> None:
    install("packed", "")
    (tmp_path / "site-packages/superd_packed.py").unlink()
    package = tmp_path / "site-packages/superd_packed"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import superd_services")
    (package / "inner.py").write_text("class A:\n    async def takeover(self, sock, conn): pass")
    (package / "damaged.py").write_text("class (:")
    assert installed()["packed"].kinds == ("stream",)


def test_a_plugin_without_its_source_is_still_listed(
    tmp_path: Path, install: Install, superd_here: Say
) -> None:
    install("hollow", "")
    (tmp_path / "site-packages/superd_hollow.py").unlink()
    [info] = (tmp_path / "site-packages").glob("*.dist-info")
    (info / "METADATA").unlink()
    [line] = [li for li in superd_here("plugins").stdout.splitlines() if li.startswith("hollow")]
    assert line.split() == ["hollow", "(unknown)", "?", "?", "-"]


def test_the_list_takes_no_configuration_but_refuses_a_wrong_one(
    tmp_path: Path, superd_here: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "[")
    monkeypatch.setenv("SUPERD_CONFIG", str(file))
    assert superd_here("plugins").returncode == 0
    assert superd_here("plugins", "-c", str(file)).returncode == 78


@pytest.mark.parametrize("name", BUNDLED)
def test_a_plugin_is_shown_with_a_sample_that_passes_check(
    tmp_path: Path, superd_here: Say, name: str
) -> None:
    shown = json.loads(superd_here("plugins", name, "--json").stdout)
    assert shown["manual"]
    assert all(option["description"] for option in shown["options"].values())
    file = written(tmp_path, "\n".join(shown["sample"]))
    assert superd_here("check", str(file)).stdout == "configuration OK\n"


def test_a_plugin_is_shown_with_its_manual_and_options(
    tmp_path: Path, install: Install, superd_here: Say
) -> None:
    install("greedy", WITH_OPTIONS)
    shown = superd_here("plugins", "greedy").stdout
    assert shown == (
        "greedy, of superd-greedy 1.0 (superd_greedy)\n"
        "serves stream addresses\n"
        "\n"
        "Wants a lot.\n"
        "\n"
        "And says so at length.\n"
        "\n"
        "Options:\n"
        "  command (array, required)  what to run\n"
        "  how (string, required)  in which way\n"
        "  many (integer, required)  how often\n"
        "  to (string, required)\n"
        "  every (string, required)  how long between\n"
        "  buffer (integer or string, default 65536)  bytes kept\n"
        '  patience (string, default "1m30s")  until it is given up\n'
        "  loud (boolean, default false)\n"
        "  ratio (float, default 0.5)\n"
        "  inner (table)\n"
        "  inner.host (string)\n"
        "\n"
        "[service.greedy]\n"
        'plugin = "greedy"\n'
        'listen = ["tcp://127.0.0.1:7000"]\n'
        'options = { command = ["/bin/true"], how = "fast", many = 3, to = "...", every = "30s" }\n'
    )
    sample = shown[shown.index("[service.greedy]") :]
    assert superd_here("check", str(written(tmp_path, sample))).stdout == "configuration OK\n"


def test_a_plugin_without_a_manual_does_not_show_that_of_its_base_class(
    install: Install, superd_here: Say
) -> None:
    install(
        "terse",
        """
        from superd.plugin import Service, hookimpl

        class Terse(Service):
            name = "terse"

            def respond(self, request):
                return b""

        @hookimpl
        def superd_services():
            return [Terse]
        """,
    )
    assert superd_here("plugins", "terse").stdout == (
        "terse, of superd-terse 1.0 (superd_terse)\n"
        "serves stream and datagram addresses\n"
        "\n"
        "Options: none\n"
        "\n"
        "[service.terse]\n"
        'plugin = "terse"\n'
        'listen = ["tcp://127.0.0.1:7000", "udp://127.0.0.1:7000"]\n'
    )


def test_an_unknown_plugin_is_an_error_with_the_nearest_name(superd_here: Say) -> None:
    done = superd_here("plugins", "ehco")
    assert done.returncode == 1
    assert done.stderr == 'superd: there is no plugin "ehco" (did you mean "echo"?)\n'


def test_a_broken_plugin_is_an_error_with_the_reason(
    tmp_path: Path, install: Install, superd_here: Say
) -> None:
    install("dies", "import os; os.abort()")
    install("raises", "import superd_no_such_module")
    done = superd_here("plugins", "dies")
    assert (done.returncode, done.stderr) == (
        1,
        "superd: plugin dies: its process was ended by SIGABRT\n",
    )
    done = superd_here("plugins", "raises")
    assert done.stderr == (
        "superd: plugin raises cannot be loaded:"
        " ModuleNotFoundError: No module named 'superd_no_such_module'"
        f" ({tmp_path}/site-packages/superd_raises.py:1)\n"
    )
