"""A broken plugin, whatever it does, breaks the services that name it and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Install, Say
from tests.config.configurations import written
from tests.support.harness import Superd, exchange, superd

ECHO = '[service.{0}]\nplugin = "echo"\nlisten = "unix://@broken-{0}"\n'
SERVICE = '[service.{0}]\nplugin = "{0}"\nlisten = "unix://@broken-{0}"\n'

BROKEN = {
    "importerror": "import superd_no_such_module",
    "syntaxerror": "def f(:",
    "raises": "raise RuntimeError('no luck')",
    "exits": "raise SystemExit(3)",
    "ends": "import os; os._exit(0)",
    "segfaults": "import ctypes; ctypes.string_at(0)",
    "nothing": "",
    "others": """
        from superd.plugin import Service, hookimpl

        class Other(Service):
            name = "other"

            async def stream(self, conn):
                pass

        @hookimpl
        def superd_services():
            return [Other]
        """,
    "single": """
        from superd.plugin import Service, hookimpl

        class Single(Service):
            name = "single"

            async def stream(self, conn):
                pass

        @hookimpl
        def superd_services():
            return Single
        """,
    "first": """
        from superd.plugin import Service, hookimpl

        class First(Service):
            name = "first"

            async def stream(self, conn):
                pass

        class Second(First):
            name = "second"

        @hookimpl
        def superd_services():
            return [First, Second]
        """,
    "yields": """
        from superd.plugin import Service, hookimpl

        class Yields(Service):
            name = "yields"

            async def takeover(self, sock, conn):
                yield

        @hookimpl
        def superd_services():
            return [Yields]
        """,
}
REASONS = {
    "importerror": "ModuleNotFoundError: No module named 'superd_no_such_module'",
    "syntaxerror": "SyntaxError: ",
    "raises": "RuntimeError: no luck",
    "exits": "SystemExit: 3",
    "ends": "its process ended with code 0",
    "segfaults": "its process was ended by SIGSEGV",
    "nothing": "should return one class with the name",
    "others": "should return one class with the name",
    "single": "superd_services should return a list of classes, such as [A], found ",
    "first": 'class Second has no entry point; add second = "superd_first" below '
    "[project.entry-points.superd]",
    "yields": "Yields.takeover",
}


@pytest.fixture
def all_broken(install: Install) -> None:
    for name, source in BROKEN.items():
        install(name, source)


@pytest.mark.usefixtures("all_broken")
def test_check_reports_each_broken_plugin_at_its_key(tmp_path: Path, superd_here: Say) -> None:
    text = ECHO.format("fine") + "".join(SERVICE.format(name) for name in BROKEN)
    file = written(tmp_path, text)
    done = superd_here("check", str(file))
    assert done.returncode == 78
    lines = done.stderr.splitlines()
    for number, (line, name) in enumerate(zip(lines, BROKEN, strict=True)):
        place = f"{file}:{3 * number + 5}:10: service.{name}.plugin: "
        assert line.startswith(f"{place}plugin {name}"), line
        assert REASONS[name] in line


@pytest.mark.usefixtures("all_broken")
def test_a_broken_plugin_that_no_service_names_is_ignored(tmp_path: Path, superd_here: Say) -> None:
    assert superd_here("check", str(written(tmp_path, ECHO.format("a")))).returncode == 0


@pytest.mark.usefixtures("all_broken")
def test_a_broken_plugin_breaks_only_the_services_that_name_it(tmp_path: Path) -> None:
    entry = '[service.{0}]\nplugin = "{1}"\nlisten = "tcp://127.0.0.1:0"\n'
    text = entry.format("fine", "echo") + "".join(entry.format(name, name) for name in BROKEN)
    one = Superd(tmp_path, text)
    try:
        one.start()
        assert exchange(one.connect("fine"), b"hello") == b"hello"
        assert not any(name in line for name in BROKEN for line in one.announced)
        for name in BROKEN:
            line = one.wait_for_log(rf"error: not served: .*service={name}\n")[0]
            assert REASONS[name] in line
        assert set(one.status()["broken"]) == set(BROKEN)
    finally:
        one.stop()


def test_a_start_with_a_broken_plugin_returns_1_and_the_reason(
    tmp_path: Path, install: Install
) -> None:
    install("raises", BROKEN["raises"])
    text = '[daemon]\nlog = "log.txt"\n' + SERVICE.format("raises")
    text += '[service.fine]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\n'
    one = Superd(tmp_path, text)
    one.write()
    done = one.run("start")
    try:
        assert done.returncode == 1
        assert done.stderr == (
            "superd: service.raises is not served:"
            " plugin raises cannot be loaded: RuntimeError: no luck"
            f" ({tmp_path}/site-packages/superd_raises.py:1)\n"
            f"superd: 1 of 2 services are served, by process {one.pid}\n"
        )
        [served] = one.status()["services"]
        assert served["name"] == "fine"
    finally:
        assert one.run("stop").returncode == 0


def test_superd_does_not_run_if_every_plugin_is_broken(tmp_path: Path, install: Install) -> None:
    install("exits", BROKEN["exits"])
    file = written(tmp_path, SERVICE.format("exits"))
    done = superd("run", "-c", str(file))
    assert done.returncode == 78
    assert done.stderr == (
        f"{file}:2:10: service.exits.plugin: plugin exits cannot be loaded: SystemExit: 3"
        f" ({tmp_path}/site-packages/superd_exits.py:1)\n"
    )


def test_a_plugin_that_fails_to_prepare_is_not_served(tmp_path: Path) -> None:
    written(tmp_path, "%\n%\n", "quotes")
    text = '[service.q]\nplugin = "qotd"\nlisten = "unix://@broken"\noptions.quotes = "quotes"\n'
    done = superd("run", "-c", str(written(tmp_path, text)))
    assert done.returncode == 78
    assert (
        "2:10: service.q.plugin: plugin qotd failed in prepare: ValueError: no quote" in done.stderr
    )


FAILING = """
    from superd.plugin import Service, hookimpl

    def fail(step):
        if step == "{step}":
            raise RuntimeError("{step} has\\ntwo lines")

    class Failing(Service):
        name = "failing"

        def __init__(self, options):
            super().__init__(options)
            fail("__init__")

        def check(self, entry):
            fail("check")

        @classmethod
        def check_all(cls, services):
            fail("check_all")
            return ()

        def prepare(self):
            fail("prepare")

        def start(self):
            fail("start")

        def close(self):
            fail("close")

        def respond(self, request):
            return b"served"

    @hookimpl
    def superd_services():
        fail("superd_services")
        return [Failing]
    """


@pytest.mark.parametrize(
    ("step", "how"),
    [
        ("superd_services", "cannot be loaded"),
        ("__init__", "failed in __init__"),
        ("check", "failed in check"),
        ("check_all", "failed in check_all"),
        ("prepare", "failed in prepare"),
        ("start", "failed in start"),
    ],
)
def test_a_failing_step_is_reported_on_one_line_with_its_place(
    tmp_path: Path, install: Install, step: str, how: str
) -> None:
    install("failing", FAILING.replace("{step}", step))
    done = superd("run", "-c", str(written(tmp_path, SERVICE.format("failing"))))
    assert done.returncode != 0
    place = f"{tmp_path}/site-packages/superd_failing.py:6"
    message = rf"plugin failing {how}: RuntimeError: {step} has\ntwo lines ({place})"
    assert any(message in line for line in done.stderr.splitlines()), done.stderr


def test_a_plugin_that_fails_to_close_is_logged_with_its_stack(
    tmp_path: Path, install: Install
) -> None:
    install("failing", FAILING.replace("{step}", "close"))
    one = Superd(tmp_path, '[service.failing]\nplugin = "failing"\nlisten = "tcp://127.0.0.1:0"\n')
    one.start()
    assert exchange(one.connect("failing"), b"") == b"served"
    assert one.stop() == 0
    message = one.log()
    assert "error: plugin failing failed in close: RuntimeError: close has" in message
    assert 'superd_failing.py", line 6, in fail' in message


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("superd_servces", ' (did you mean "superd_services"?)'),
        ("on_connection", "; there is superd_services"),
    ],
)
def test_an_unknown_hook_is_a_mistake_of_the_plugin(
    tmp_path: Path, install: Install, superd_here: Say, name: str, hint: str
) -> None:
    install(
        "hopeful", f"from superd.plugin import hookimpl\n@hookimpl\ndef {name}():\n    return []"
    )
    done = superd_here("check", str(written(tmp_path, SERVICE.format("hopeful"))))
    assert done.returncode == 78
    assert f"plugin hopeful cannot be used: there is no hook {name}{hint}\n" in done.stderr


def test_two_distributions_with_one_plugin_are_refused_and_both_named(
    tmp_path: Path, install: Install, superd_here: Say
) -> None:
    install("echo", BROKEN["raises"])
    file = written(tmp_path, ECHO.format("a"))
    for done in (
        superd_here("check", str(file)),
        superd("run", "-c", str(file)),
        superd("start", "-c", str(file)),
    ):
        assert done.returncode == 78
        assert done.stderr.startswith(
            f"{file}:2:10: service.a.plugin: plugin echo is offered by several distributions: "
        )
        assert "superd 0." in done.stderr
        assert "superd-echo 1.0" in done.stderr
    other = written(tmp_path, SERVICE.format("time"), "other.toml")
    assert superd_here("check", str(other)).returncode == 0  # who does not name it is not touched
    rows = [line.split()[:2] for line in superd_here("plugins").stdout.splitlines()]
    assert ["echo", "superd"] in rows
    assert ["echo", "superd-echo"] in rows
    done = superd_here("plugins", "echo")
    assert done.returncode == 1
    assert done.stderr.startswith("superd: plugin echo is offered by several distributions: ")


def test_output_of_a_plugin_goes_to_standard_error(tmp_path: Path, install: Install) -> None:
    install(
        "chatty",
        """
        from superd.plugin import Service, hookimpl

        class Chatty(Service):
            name = "chatty"

            def respond(self, request):
                return b""

        @hookimpl
        def superd_services():
            return [Chatty]

        print("noise" * 20000)
        """,
    )
    done = superd("check", str(written(tmp_path, SERVICE.format("chatty"))))
    assert done.stdout == "configuration OK\n"
    assert "noise" in done.stderr


def test_damaged_metadata_of_a_distribution_is_an_error_in_words(
    tmp_path: Path, install: Install, superd_here: Say
) -> None:
    install("a", "")
    [points] = tmp_path.glob("site-packages/*/entry_points.txt")
    points.write_text("[superd]\nnot an entry\n")
    done = superd_here("check", str(written(tmp_path, ECHO.format("a"))))
    assert done.returncode == 1
    assert done.stderr.startswith("superd: the metadata of an installed distribution cannot be")


def test_a_plugin_of_pydantic_is_not_imported(tmp_path: Path, install: Install) -> None:
    """Any distribution can offer one; it would run as root in the master."""
    install("intruder", f"open({str(tmp_path / 'trace')!r}, 'w')")
    [points] = tmp_path.glob("site-packages/*/entry_points.txt")
    points.write_text("[pydantic]\nintruder = superd_intruder:plugin\n")
    assert superd("check", str(written(tmp_path, ECHO.format("a")))).returncode == 0
    assert not (tmp_path / "trace").exists()
