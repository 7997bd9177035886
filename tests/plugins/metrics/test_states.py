"""What the plugin metrics answers in each state of superd: readiness and liveness."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.harness import Superd, command, exchange, make_plugin, until
from tests.support.inside import INSIDE, run_inside
from tests.support.ports import free_port
from tests.support.programs import public_directory
from tests.support.scrapes import (
    SERVICE,
    Scrape,
    get_page,
    persistent,
    request_page,
    scrape_metrics,
)

READY = (200, "superd is ready\n")
ALIVE = (200, "superd is alive\n")

# blocks the start of its worker while a file exists
SLOW = """
    import os, time
    from superd.plugin import Options, Service, hookimpl

    class SlowOptions(Options):
        until: str

    class Slow(Service):
        name = "slow"
        options_model = SlowOptions

        def start(self):
            while os.path.exists(self.options.until):
                time.sleep(0.01)

        async def stream(self, conn):
            pass

    @hookimpl
    def superd_services():
        return [Slow]
"""

Slow = tuple[str, Path, dict[str, str]]

# for clients that stay connected, however slow the machine is
LONG_TIMEOUT = SERVICE + 'options = { timeout = "1m" }\n'

ECHO = """
[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
"""


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Slow]:
    """An entry of a service in a pool of its own, the file that blocks it, and its environment."""
    with public_directory() as directory:  # workers run as the user nobody
        yield slow_entry(directory / "hold", tmp_path)


def slow_entry(hold: Path, tmp_path: Path) -> Slow:
    entry = f"""
    [service.slow]
    plugin = "slow"
    listen = "tcp://127.0.0.1:0"
    pool = "slow"
    options = {{ until = "{hold}" }}
    """
    return entry, hold, make_plugin(tmp_path / "plugins", "slow", SLOW)


def test_a_pool_without_a_ready_worker_makes_superd_unready(
    start_superd: Start, slow: Slow
) -> None:
    entry, hold, env = slow
    superd = start_superd(SERVICE + entry, env=env)
    assert get_page(superd, "/readyz") == READY
    [victim] = superd.workers("slow")
    hold.touch()
    os.kill(victim, signal.SIGKILL)
    until(lambda: get_page(superd, "/readyz")[0] == 503, "superd not to be ready")
    assert get_page(superd, "/readyz") == (503, "no worker of pool slow is ready\n")
    assert get_page(superd, "/livez") == ALIVE
    scrape = scrape_metrics(superd)
    assert scrape("ready") == 0
    assert scrape("workers", pool="slow", state="starting") == 1
    hold.unlink()
    until(lambda: get_page(superd, "/readyz") == READY, "superd to be ready again")


def test_superd_is_alive_and_not_ready_while_it_starts(tmp_path: Path, slow: Slow) -> None:
    entry, hold, env = slow
    hold.touch()
    superd = Superd(tmp_path, SERVICE.replace(":0", f":{(port := free_port())}") + entry, env=env)
    superd.announced = [f"metrics  tcp://127.0.0.1:{port} "]
    with subprocess.Popen(
        command("run", "-c", str(superd.write())),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **env},
    ) as process:
        try:
            until(_answers(superd), "the worker that has started")
            assert get_page(superd, "/readyz") == (503, "superd is starting\n")
            assert get_page(superd, "/livez") == ALIVE
            assert scrape_metrics(superd)("state", state="starting") == 1
            hold.unlink()
            until(lambda: get_page(superd, "/readyz") == READY, "superd to be ready")
        finally:
            process.send_signal(signal.SIGINT)


def _answers(superd: Superd) -> Callable[[], bool]:
    def found() -> bool:
        try:
            return get_page(superd, "/livez")[0] == 200
        except OSError:
            return False

    return found


def test_superd_is_not_ready_while_it_drains_and_keeps_no_idle_client(start_superd: Start) -> None:
    superd = start_superd(LONG_TIMEOUT + ECHO)
    with superd.connect("echo") as stays, persistent(superd) as probe:
        stays.sendall(b"x")
        assert stays.recv(1) == b"x"
        probe.connect()
        until(lambda: superd.counts("metrics")["active"], "the probe to be accepted")
        superd.signal(signal.SIGTERM)
        until(lambda: superd.answer()["state"] == "draining", "the drain")
        assert request_page(probe, "/readyz") == (503, "superd is draining\n")
        assert probe.sock is None, "the server closes it"
        assert exchange(stays, b"y") == b"y"
    assert superd.wait() == 0
    assert "cut at the end of drain-timeout" not in superd.log()


def test_an_idle_client_does_not_delay_the_stop(start_superd: Start) -> None:
    toml = SERVICE + 'options = { timeout = "500ms" }\n'
    superd = start_superd(toml)
    with persistent(superd) as probe:
        assert request_page(probe, "/livez") == ALIVE
        superd.signal(signal.SIGTERM)
        assert superd.wait() == 0
    assert "cut at the end of drain-timeout" not in superd.log()


def test_superd_stays_ready_during_a_reload(start_superd: Start) -> None:
    superd = start_superd(LONG_TIMEOUT + ECHO + 'pool = "echo"\n')
    superd.file.write_text(
        superd.file.read_text().replace('pool = "echo"', 'nice = 1\nrate = "9/s"')
    )
    reload = subprocess.Popen(command("reload", "-c", str(superd.file)), stdout=subprocess.DEVNULL)
    probes = 0
    with reload, persistent(superd) as probe:
        while reload.poll() is None or not probes:
            assert get_page(superd, "/readyz") == READY
            assert request_page(probe, "/readyz") == READY
            probes += 1
    assert reload.returncode == 0
    until(lambda: len(superd.answer()["workers"]) == 2, "the end of the workers before")
    assert get_page(superd, "/readyz") == READY
    assert scrape_metrics(superd)("config_generation") == 2


def test_an_unresponsive_master_is_reported_soon(start_superd: Start) -> None:
    superd = start_superd(SERVICE)
    os.kill(superd.pid, signal.SIGSTOP)
    try:
        for path in ("/livez", "/readyz", "/metrics"):
            assert get_page(superd, path) == (503, "the master does not answer\n")
    finally:
        os.kill(superd.pid, signal.SIGCONT)
    for path in ("/livez", "/readyz", "/metrics"):
        until(lambda path=path: get_page(superd, path)[0] == 200, "the master to answer again")  # type: ignore[misc]


def test_all_workers_answer_many_concurrent_clients(start_superd: Start) -> None:
    superd = start_superd(f"[daemon]\nworkers = 3\n{SERVICE}")

    def scrapes(_: int) -> list[Scrape]:
        return [scrape_metrics(superd) for _ in range(10)]

    with ThreadPoolExecutor(8) as clients:
        found = [scrape for several in clients.map(scrapes, range(8)) for scrape in several]
    assert len(found) == 80
    assert all(scrape("workers", state="ready") == 3 for scrape in found)
    assert scrape_metrics(superd)("service_errors_total", service="metrics") == 0


@pytest.mark.root
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_metrics_work_in_an_empty_jail(start_superd: Start, jail: Path, loop: str) -> None:
    superd = start_superd(
        f"""
        [daemon]
        loop = "{loop}"
        [defaults]
        chroot = "{jail}"
        user = "nobody"
        {SERVICE}
        """
    )
    assert get_page(superd, "/readyz") == READY
    assert get_page(superd, "/livez") == ALIVE
    assert get_page(superd, "/nothing")[0] == 404
    scrape = scrape_metrics(superd)
    assert scrape("ready") == 1
    assert len(scrape.all("process_open_fds")) == 2
    with persistent(superd) as connection:
        connection.request("GET", "/livez", body="unexpected")
        assert connection.getresponse().status == 200
    assert exchange(superd.connect("metrics"), b"\xff").startswith(b"HTTP/1.1 400 ")
    assert superd.stop() == 0
    assert "error" not in superd.log()


def test_only_metrics_may_query_and_a_worker_that_forges_a_query_is_ended(
    start_superd: Start, tmp_path: Path
) -> None:
    entry = '[service.inside]\nplugin = "inside"\nlisten = "tcp://127.0.0.1:0"\npool = "other"\n'
    env = make_plugin(tmp_path / "plugins", "inside", INSIDE)
    superd = start_superd(SERVICE + entry, env=env)
    [worker] = superd.workers("other")
    find = "me = sys._getframe(1).f_locals['self']\n"
    refused = run_inside(
        superd,
        "inside",
        f"{find}try:\n    me.observe('metrics').send(None)\nexcept RuntimeError as error:\n"
        "    result = str(error)",
    )
    assert refused == "inside cannot observe superd: its plugin is not metrics"
    run_inside(superd, "inside", f"{find}result = me._server._channel.observe('metrics')")
    superd.wait_for_log(f"worker {worker} sent an invalid message: .* serves no metrics")
    until(lambda: superd.workers("other") not in ([], [worker]), "its successor")
    assert get_page(superd, "/readyz") == READY
