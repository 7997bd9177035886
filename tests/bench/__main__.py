"""Measure superd beside its peers: inetds, or programs that forward ports.

The servers run on one core and take turns. The load runs on another core. The figures are medians
of several rounds. The exit code is 0 if the measurement worked, whatever its figures, and 1 if it
failed.
"""

import argparse
import contextlib
import resource
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench import forward, inetd, report
from tests.bench.cores import Cores
from tests.bench.goals import Results
from tests.bench.idle import measure_idle
from tests.bench.load import Sample, Workload, measure, median
from tests.bench.servers import Running, running
from tests.bench.startup import ready_times
from tests.bench.suite import Suite
from tests.bench.workspace import BenchError

SUITES = {suite.name: suite for suite in (inetd.SUITE, forward.SUITE)}


@dataclass(frozen=True)
class Options:
    """The command line."""

    suite: Suite
    only: list[str]
    work: list[str]
    rounds: int
    secs: float
    json: Path | None


def main() -> int:
    options = _parse()
    _prepare_process()
    try:
        results = _measure_all(options, Cores.available())
    except BenchError as error:
        _say(str(error))
        return 1
    goals = options.suite.judge(results)
    print(report.text(results, goals))
    if options.json:
        settings = {"suite": options.suite.name, "rounds": options.rounds, "secs": options.secs}
        report.write_json(options.json, results, goals, settings)
    return 0


def _measure_all(options: Options, cores: Cores) -> Results:
    if cores.server == cores.load:
        _say("only one core: servers and load share it, so the figures are less reliable")
    suite = options.suite
    results = Results()
    if "ready" in options.work and suite.ready in options.only:
        results.ready_seconds = ready_times(suite.servers[suite.ready]())
    works = [work for work in suite.works if work.name in options.work]
    if works:
        results.works = _measure_works(works, options, cores)
    if "idle" in options.work:
        for name in suite.idle:
            if name in options.only:
                with _may_be_missing(name, suite):
                    server = suite.servers[name]()
                    results.idle[name] = measure_idle(server, suite.idle_connections, cores)
    return results


def _measure_works(
    works: list[Workload], options: Options, cores: Cores
) -> dict[str, dict[str, Sample]]:
    """Run each workload on each server in turn, in several rounds; return the medians."""
    with contextlib.ExitStack() as stack:
        targets = _start_servers(options, cores, stack)
        pairs = [(work, target) for work in works for target in targets if _fits(work, target)]
        samples: dict[tuple[str, str], list[Sample]] = {}
        for number in range(1, options.rounds + 1):
            _say(f"round {number} of {options.rounds}")
            for work, target in pairs:
                sample = measure(work, target, options.secs, cores.load)
                samples.setdefault((work.name, target.server.name), []).append(sample)
    medians: dict[str, dict[str, Sample]] = {}
    for (work_name, server_name), taken in samples.items():
        medians.setdefault(work_name, {})[server_name] = median(taken)
    return medians


def _start_servers(options: Options, cores: Cores, stack: contextlib.ExitStack) -> list[Running]:
    targets = []
    for name in options.only:
        with _may_be_missing(name, options.suite):
            server = options.suite.servers[name]()
            targets.append(stack.enter_context(running(server, cores)))
    return targets


@contextlib.contextmanager
def _may_be_missing(name: str, suite: Suite) -> Iterator[None]:
    """Skip a peer that cannot be installed or started."""
    try:
        yield
    except BenchError as error:
        if name in suite.own:
            raise
        _say(f"left out: {error}")


def _fits(work: Workload, target: Running) -> bool:
    reason = work.why_not(target.server)
    if reason:
        _say(f"{work.name} without {target.server.name}: {reason}")
    return not reason


def _prepare_process() -> None:
    """Raise the file limit for the servers; on SIGINT and SIGTERM, exit and so stop the servers."""
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    for stop_signal in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop_signal, lambda number, _: sys.exit(128 + number))


def _parse() -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--suite", choices=SUITES, default=inetd.SUITE.name)
    parser.add_argument("--only", metavar="SERVER,...", help="these servers only")
    parser.add_argument("--work", metavar="WORK,...", help="these workloads only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--secs", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    given = parser.parse_args()
    suite = SUITES[given.suite]
    try:
        only = _names(given.only, list(suite.servers))
        work = _names(given.work, suite.work_names)
    except ValueError as error:
        parser.error(str(error))
    return Options(suite, only, work, given.rounds, given.secs, given.json)


def _names(text: str | None, known: list[str]) -> list[str]:
    """Return the names in a comma-separated list, in the order of `known`; all if there is no list.

    Raises ValueError for an unknown name.
    """
    if text is None:
        return known
    names = text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}; known: {known}")
    return [name for name in known if name in names]


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
