"""Metrics match what happened: the daemon's own numbers, compared with what its clients did."""

from __future__ import annotations

import os
import platform
import signal
from pathlib import Path

import pytest

from superd import __version__
from superd.admission.refusals import Refusal
from superd.admission.scoreboard import DURATIONS
from superd.process.procfs import usage_of
from tests.conftest import Start
from tests.support.clients import connect_and_receive
from tests.support.harness import Superd, ask_udp, exchange, make_plugin, until
from tests.support.inside import INSIDE
from tests.support.proc import descriptor_names
from tests.support.programs import output_for_input
from tests.support.scrapes import SERVICE, Scrape, scrape_metrics

TOML = f"""
[daemon]
workers = 2
log = ["stderr", "/dev/full"]
{SERVICE}
[service.echo]
plugin = "echo"
listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]

[service.closed]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
deny = "*"

[service.inside]
plugin = "inside"
listen = "tcp://127.0.0.1:0"

[service.web]
plugin = "forward"
listen = "tcp://127.0.0.1:0"
options = {{ to = ["unix://{{directory}}/absent"] }}

[service.named]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
allow = ".example.com"
"""

PLUGINS = {"inside": INSIDE}


def until_scraped(superd: Superd, name: str, value: float, **labels: str) -> Scrape:
    """Scrape until a number has a value: superd counts shortly after the client's result."""

    def found() -> Scrape | None:
        scrape = scrape_metrics(superd)
        return scrape if sum(scrape.all(name, **labels)) == value else None

    return until(found, f"{name} of {labels} to be {value}")


def test_connections_and_datagrams_are_counted(served: Superd) -> None:
    for size in (1, 10, 100):
        assert exchange(served.connect("echo"), b"x" * size) == b"x" * size
    with served.connect("echo") as stays:
        stays.sendall(b"y")
        assert stays.recv(1) == b"y"
        assert ask_udp(served.address("echo", "udp"), b"hello") == b"hello"
        scrape = until_scraped(
            served, "service_connection_duration_seconds_count", 3, service="echo"
        )
        assert scrape("service_accepted_total", service="echo") == 4
        assert scrape("service_connections", service="echo") == 1
        assert scrape("service_datagrams_total", service="echo") == 1
        assert scrape("service_answers_total", service="echo") == 1
        assert scrape("service_dropped_datagrams_total", service="echo") == 0
    scrape = until_scraped(served, "service_connections", 0, service="echo")
    assert scrape("service_received_bytes_total", service="echo") == 111 + 1 + 5
    assert scrape("service_sent_bytes_total", service="echo") == 111 + 1 + 5
    buckets = scrape.all("service_connection_duration_seconds_bucket", service="echo")
    assert buckets == sorted(buckets)
    assert len(buckets) == len(DURATIONS) + 1
    assert buckets[-1] == 4


def test_refusals_are_counted_by_their_reason(served: Superd) -> None:
    for _ in range(3):
        assert exchange(served.connect("closed"), b"") == b""
    scrape = until_scraped(
        served, "service_refused_total", 3, service="closed", reason=Refusal.ACCESS.value
    )
    assert sum(scrape.all("service_refused_total")) == 3
    assert len(scrape.all("service_refused_total", service="closed")) == len(Refusal)


def test_errors_of_plugins_are_counted(served: Superd) -> None:
    assert connect_and_receive(served.address("inside"), b"1 / 0") == (b"", "reset")
    until_scraped(served, "service_errors_total", 1, service="inside")


def test_numbers_in_the_status_of_a_service_are_metrics(served: Superd) -> None:
    connect_and_receive(served.address("web"), b"")
    target = {"service": "web", "row": f"unix://{served.directory}/absent"}
    scrape = until_scraped(served, "service_status", 1, **target, column="failures")
    assert scrape.all("service_status", **target, column="weight") == [1, 1]
    columns = {
        sample.labels["column"] for sample in scrape.families["superd_service_status"].samples
    }
    assert columns == {"weight", "active", "served", "failures"}


def test_superd_itself_has_metrics(served: Superd) -> None:
    scrape = scrape_metrics(served)
    assert scrape("build_info", version=__version__, python=platform.python_version()) == 1
    assert scrape("config_info", file=str(served.file)) == 1
    assert scrape("service_info", service="web", plugin="forward") == 1
    assert scrape("services", state="served") == 6
    assert scrape("state", state="serving") == sum(scrape.all("state")) == 1
    assert scrape("ready") == 1
    assert scrape("config_generation") == 1
    assert scrape("config_last_reload_successful") == 1
    assert scrape("config_reloads_total") == 0
    assert 0 <= scrape("start_time_seconds") - served.answer()["since"] < 1
    assert scrape("log_failures_total") >= 1
    assert scrape("lost_lines_total") == 0


@pytest.mark.root  # reads /proc/PID/fd of workers
def test_each_process_has_metrics_of_its_usage(served: Superd) -> None:
    workers = served.workers()
    pids = {"master": served.pid, "resolver": served.answer()["resolver"]}
    before = {pid: usage_of(pid) for pid in (*pids.values(), *workers)}
    scrape = Scrape(served.run("status", "--prometheus").stdout)  # measured for this request
    infos = scrape.families["superd_worker_info"].samples
    numbers = {int(sample.labels["pid"]): sample.labels["worker"] for sample in infos}
    assert set(numbers) == set(workers)
    assert scrape("workers", state="ready", generation="1") == 2
    assert sum(scrape.all("workers")) == 2
    processes = {pid: {"process": name} for name, pid in pids.items()}
    processes |= {pid: {"process": "worker", "worker": number} for pid, number in numbers.items()}
    for pid, of in processes.items():
        first, last = before[pid], usage_of(pid)
        assert first is not None
        assert last is not None
        assert first.cpu <= scrape("process_cpu_seconds_total", **of) <= last.cpu
        spent = scrape("process_children_cpu_seconds_total", **of)
        assert first.children_cpu <= spent <= last.children_cpu
        assert scrape("process_resident_memory_bytes", **of) > 1 << 20
        assert abs(scrape("process_start_time_seconds", **of) - first.started) < 1
        descriptors = len(descriptor_names(pid))
        assert abs(scrape("process_open_fds", **of) - descriptors) < 5


@pytest.mark.tool("promtool")
def test_promtool_accepts_the_metrics(served: Superd) -> None:
    printed = served.run("status", "--prometheus")
    assert (printed.returncode, printed.stderr) == (0, "")
    for text in (scrape_metrics(served).text, printed.stdout):
        assert output_for_input(text.encode(), "promtool", "check", "metrics") == b""
        assert not text.endswith("\n\n")


def test_the_command_prints_the_metrics_of_the_service(served: Superd) -> None:
    printed = Scrape(served.run("status", "--prometheus").stdout)
    names = [sample.name for sample in scrape_metrics(served).samples]
    assert [sample.name for sample in printed.samples] == names
    assert printed("service_accepted_total", service="echo") == 4


def test_the_command_reports_that_superd_is_not_running(tmp_path: Path) -> None:
    stopped = Superd(tmp_path, SERVICE)
    stopped.write()
    done = stopped.run("status", "--prometheus")
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "superd is not running\n")


def test_workers_reloads_and_bans_are_counted(start_superd: Start) -> None:
    superd = start_superd(
        f'{SERVICE}[service.echo]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\npool = "other"\n'
    )
    [victim] = superd.workers("other")
    os.kill(victim, signal.SIGKILL)
    scrape = until_scraped(superd, "worker_restarts_total", 1)
    assert scrape("worker_restarts_total", pool="other") == 1
    assert scrape.all("worker_info", pid=str(victim)) == []

    assert superd.run("ban", "192.0.2.1").returncode == 0
    until_scraped(superd, "bans", 1)

    first = scrape("config_last_reload_success_timestamp_seconds")
    superd.file.write_text(superd.file.read_text().replace('pool = "other"', ""))
    assert superd.run("reload").returncode == 0
    superd.file.write_text(superd.file.read_text().replace('"echo"', '"nothing"'))
    assert superd.run("reload").returncode == 78
    scrape = until_scraped(superd, "config_reloads_total", 2)
    assert scrape("config_generation") == 2
    assert scrape("config_last_reload_successful") == 0
    assert scrape("config_last_reload_success_timestamp_seconds") > first
    assert scrape("worker_restarts_total", pool="other") == 1


def test_odd_status_values_of_a_service_do_not_break_the_metrics(
    start_superd: Start, tmp_path: Path
) -> None:
    liar = """
        from superd.plugin import Service, hookimpl

        class Liar(Service):
            name = "liar"

            async def stream(self, conn):
                pass

            def status(self):
                odd = {"a b": True, "inf": float("inf"), "huge": 10 ** 400, "nan": float("nan")}
                same = [{"name": "same", "number": n} for n in range(3)]
                return [{"name": 'a"\\n\\\\}', **odd}, *same, {"number": 5}]

        @hookimpl
        def superd_services():
            return [Liar]
    """
    superd = start_superd(
        SERVICE + '[service.liar]\nplugin = "liar"\nlisten = "tcp://127.0.0.1:0"\n',
        env=make_plugin(tmp_path / "plugins", "liar", liar),
    )
    scrape = until_scraped(superd, "service_status", 1, column="a b")
    (row,) = {
        sample.labels["row"]
        for sample in scrape.families["superd_service_status"].samples
        if sample.labels["column"] == "a b"
    }
    assert row.startswith('a"')
    assert scrape("service_status", column="inf") == float("inf")
    assert scrape.all("service_status", column="huge") == []
    assert len(scrape.all("service_status", row="same")) == 1
    assert scrape("service_status", row="") == 5
    assert superd.run("status", "--json").returncode == 0
