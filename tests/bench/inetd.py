"""The suite `inetd`: superd beside xinetd, openbsd-inetd and a bare C server.

Each serves echo and daytime, and a program for each connection if it can.
"""

import statistics

from tests.bench import inetds, own
from tests.bench.goals import Goal, Results, rate_ratio
from tests.bench.load import Workload
from tests.bench.suite import Suite

INETDS = ("xinetd", "openbsd-inetd")
WORKS = (
    Workload("echo50", "rr", connections=50, size=64),
    Workload("connect-echo-close", "crr", connections=16, size=64),
    Workload("daytime", "crr", connections=16, size=0, service="daytime"),
    Workload("program", "crr", connections=16, size=64, service="cat"),
    Workload("bulk", "bulk", connections=4, size=65536),
    Workload("udp", "udp", connections=16, size=64),
)


def judge(results: Results) -> list[Goal]:
    """Compare the results with the goals."""
    return [
        Goal("echo50, x xinetd", ">=", 1.3, rate_ratio(results, "echo50", ["xinetd"], "superd")),
        Goal(
            "connect-echo-close, x the better inetd",
            ">=",
            10.0,
            rate_ratio(results, "connect-echo-close", INETDS, "superd"),
        ),
        Goal(
            "daytime, x the better inetd",
            ">=",
            1.0,
            rate_ratio(results, "daytime", INETDS, "superd"),
        ),
        Goal("bulk, x the better inetd", ">=", 2.0, rate_ratio(results, "bulk", INETDS, "superd")),
        Goal(
            "a program run, x xinetd",
            ">=",
            1.0,
            rate_ratio(results, "program", ["xinetd"], "superd-program"),
        ),
        Goal(
            "a program run, x openbsd-inetd",
            ">=",
            1.2,
            rate_ratio(results, "program", ["openbsd-inetd"], "superd-program"),
        ),
        Goal(
            "an echo that blocks, preforked, x xinetd's forking one",
            ">=",
            5.0,
            rate_ratio(results, "connect-echo-close", ["xinetd"], "superd-prefork"),
        ),
        Goal(
            "daytime with policy and records, x the better inetd",
            ">=",
            1.0,
            rate_ratio(results, "daytime", INETDS, "superd-policy"),
        ),
        Goal("policy and records, us of CPU a connection", "<=", 10.0, _cost_of_policy(results)),
        Goal(
            "daytime with 10,000 networks, x with three",
            ">=",
            0.95,
            rate_ratio(results, "daytime", ["superd-policy"], "superd-networks"),
        ),
        Goal("memory of master and worker, MB", "<=", 45.0, _memory(results)),
        Goal("ready after exec, s", "<=", 0.5, _ready(results)),
        Goal("memory of an idle connection, bytes", "<=", 4096.0, _idle(results)),
    ]


def _cost_of_policy(results: Results) -> float | None:
    """Return the CPU time in microseconds that policy and records add to a connection."""
    samples = results.works.get("daytime", {})
    if "superd" not in samples or "superd-policy" not in samples:
        return None
    return samples["superd-policy"].cpu_us - samples["superd"].cpu_us


def _memory(results: Results) -> float | None:
    sizes = [row["superd"].pss_mb for row in results.works.values() if "superd" in row]
    return max(sizes, default=None)


def _ready(results: Results) -> float | None:
    return statistics.median(results.ready_seconds) if results.ready_seconds else None


def _idle(results: Results) -> float | None:
    return results.idle["superd"].bytes_each if "superd" in results.idle else None


SUITE = Suite(
    name="inetd",
    own={
        "superd": own.superd,
        "superd-program": own.superd_program,
        "superd-fork": own.superd_fork,
        "superd-prefork": own.superd_prefork,
        "superd-policy": own.superd_policy,
        "superd-networks": own.superd_networks,
        "epoll-c": own.epoll_server,
    },
    peers={"xinetd": inetds.xinetd, "openbsd-inetd": inetds.openbsd_inetd},
    works=WORKS,
    idle=("superd", "epoll-c"),
    idle_connections=10_000,
    judge=judge,
    ready="superd",
)
