"""Fixtures, options and markers that all tests share."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import proc
from tests.support.harness import Superd, make_plugin, until

Start = Callable[..., Superd]

SOAK_TIMEOUT_SECONDS = 3600  # in place of pyproject.toml's limit, which is for the other tests


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests, too")
    parser.addoption("--soak", action="store_true", help="run the endurance tests, too")


def pytest_configure(config: pytest.Config) -> None:
    _use_no_default_path()
    config.addinivalue_line("markers", "root: needs root; CI runs as root")
    config.addinivalue_line("markers", "slow: takes many seconds; runs with --slow only")
    config.addinivalue_line("markers", "soak: takes minutes; runs with --soak only")
    config.addinivalue_line("markers", "tool(name, ...): needs these programs")
    config.addinivalue_line("markers", "file(path, ...): needs these files of the system")
    config.addinivalue_line("markers", "terminal: needs a pseudo-terminal")


def _use_no_default_path() -> None:
    """Move superd's default paths into a directory of this test run, so that tests never touch
    another superd on the machine and leave no files behind.
    """
    directory = tempfile.mkdtemp(prefix="superd-tests-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    for name in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY", "XDG_RUNTIME_DIR"):
        os.environ[name] = directory
    os.environ["SUPERD_CONFIG"] = f"{directory}/superd.toml"


def _has_terminals() -> bool:
    """Return whether the system has pseudo-terminals; a chroot may have none."""
    try:
        ends = os.openpty()
    except OSError:
        return False
    for end in ends:
        os.close(end)
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    has_terminals = _has_terminals()
    for item in items:
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))
        for name in ("slow", "soak"):
            if item.get_closest_marker(name) and not config.getoption(f"--{name}"):
                item.add_marker(pytest.mark.skip(reason=f"{name}; runs with --{name}"))
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.timeout(SOAK_TIMEOUT_SECONDS))
        for mark in item.iter_markers("tool"):
            missing = [name for name in mark.args if shutil.which(name) is None]
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(missing)}"))
        for mark in item.iter_markers("file"):
            missing = [path for path in mark.args if not os.path.exists(path)]
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(missing)}"))
        if item.get_closest_marker("terminal") and not has_terminals:
            item.add_marker(pytest.mark.skip(reason="needs a pseudo-terminal (devpts)"))


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """Fail at the end of the run if a process that a test started still runs; kill it.

    Linux gives this process the orphans among its descendants (PR_SET_CHILD_SUBREAPER, prctl(2)).
    """
    proc.become_subreaper()
    yield
    with contextlib.suppress(AssertionError):  # some are just ending
        until(lambda: not proc.running_children(), "the end of all processes", 5)
    left = proc.running_children()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "tests left processes behind"


@pytest.fixture
def start_superd(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts superd with a configuration; the fixture stops each of them."""
    started: list[Superd] = []

    def start(toml: str, *wrapper: str, env: dict[str, str] | None = None) -> Superd:
        directory = tmp_path / f"superd-{len(started)}"
        directory.mkdir()
        instance = Superd(directory, toml, env=env)
        started.append(instance)
        return instance.start(*wrapper)

    yield start
    for instance in started:
        instance.stop()
        # pytest shows it when the test fails
        print(f"--- log of {instance.file}\n{instance.log()}")


@pytest.fixture(scope="module")
def loop() -> str:
    """The event loop of the workers. A module overrides this to run with several loops."""
    return "auto"


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, loop: str
) -> Iterator[Superd]:
    """One superd for all tests of a module: it serves the module's `TOML` with its `PLUGINS`.

    In the TOML, `{directory}` is replaced by superd's directory and `{loop}` by the event loop.
    PLUGINS maps plugin names to their source.
    """
    directory = tmp_path_factory.mktemp("superd")
    env: dict[str, str] = {}
    for name, source in getattr(request.module, "PLUGINS", {}).items():
        env = make_plugin(directory / "plugins", name, source)
    toml = request.module.TOML.replace("{directory}", str(directory)).replace("{loop}", loop)
    instance = Superd(directory, toml, env=env)
    try:
        yield instance.start()
    finally:
        instance.stop()
        print(f"--- log of {instance.file}\n{instance.log()}")


@pytest.fixture
def jail(tmp_path: Path) -> Path:
    """An empty directory that workers can be confined to."""
    directory = tmp_path / "jail"
    directory.mkdir(mode=0o755)
    return directory
