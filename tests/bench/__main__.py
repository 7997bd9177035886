"""Measure superd beside xinetd, openbsd-inetd and a bare C server.

Servers run on one core and take turns under one load from another core, several rounds; the
figures are medians. The exit code is 0 when the measurement worked, whatever it says, and 1 when
it could not be made.
"""

import argparse
import contextlib
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench import peers, report, servers
from tests.bench.cores import Cores
from tests.bench.goals import Results
from tests.bench.idle import measure_idle
from tests.bench.load import WORKS, Sample, Work, measure, median
from tests.bench.servers import Running, Server, running
from tests.bench.startup import ready_times
from tests.bench.workspace import BenchError

OWN: dict[str, Callable[[], Server]] = {
    "superd": servers.superd,
    "superd-program": servers.superd_program,
    "superd-fork": servers.superd_fork,
    "superd-prefork": servers.superd_prefork,
    "superd-policy": servers.superd_policy,
    "superd-networks": servers.superd_networks,
    "epoll-c": servers.epoll_server,
}
PEERS: dict[str, Callable[[], Server]] = {
    "xinetd": peers.xinetd,
    "openbsd-inetd": peers.openbsd_inetd,
}
SERVERS = OWN | PEERS
WORK_NAMES = [*(work.name for work in WORKS), "idle", "ready"]


@dataclass(frozen=True)
class Options:
    """The command line."""

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
    print(report.text(results))
    if options.json:
        settings = {"rounds": options.rounds, "secs": options.secs}
        report.write_json(options.json, results, settings)
    return 0


def _measure_all(options: Options, cores: Cores) -> Results:
    if cores.server == cores.load:
        _say("only one core: servers and load share it, and the figures suffer")
    results = Results()
    if "ready" in options.work and "superd" in options.only:
        results.ready_seconds = ready_times(servers.superd())
    works = [work for work in WORKS if work.name in options.work]
    if works:
        results.works = _measure_works(works, options, cores)
    if "idle" in options.work:
        own = [name for name in OWN if name in options.only and not OWN[name]().only]
        results.idle = {name: measure_idle(OWN[name](), cores) for name in own}
    return results


def _measure_works(
    works: list[Work], options: Options, cores: Cores
) -> dict[str, dict[str, Sample]]:
    """Run each work on each server in turn, round after round; return the medians."""
    with contextlib.ExitStack() as stack:
        targets = _start_servers(options.only, cores, stack)
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


def _start_servers(names: list[str], cores: Cores, stack: contextlib.ExitStack) -> list[Running]:
    """Start the servers; one of the peers may be missing."""
    targets = []
    for name in names:
        try:
            targets.append(stack.enter_context(running(SERVERS[name](), cores.server)))
        except BenchError as error:
            if name in OWN:
                raise
            _say(f"left out: {error}")
    return targets


def _fits(work: Work, target: Running) -> bool:
    reason = work.why_not(target.server)
    if reason:
        _say(f"{work.name} without {target.server.name}: {reason}")
    return not reason


def _prepare_process() -> None:
    """Let the servers have all the files they may; end them whenever this is told to end."""
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))


def _parse() -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", type=_names(list(SERVERS)), default=list(SERVERS))
    parser.add_argument("--work", type=_names(WORK_NAMES), default=WORK_NAMES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--secs", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    return Options(**vars(parser.parse_args()))


def _names(known: list[str]) -> Callable[[str], list[str]]:
    """Return a parser of names separated by commas."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; there are {known}")
        return [name for name in known if name in names]

    return parse


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
