"""The suite `forward`: superd as a forwarder of ports, beside common forwarders.

The forwarder has a core to itself. The load and the backend share the other core, and `load %`
counts both. `direct` is the backend without a forwarder: the difference to it is the cost of
forwarding (its CPU and memory are the backend's). `python` is a minimal forwarder in Python: the
difference to nginx is the cost of the interpreter, the difference to superd is the cost of
everything that superd does beside passing bytes on.
"""

from tests.bench import forwarders
from tests.bench.goals import Goal, Results, latency_ratio, rate_ratio
from tests.bench.load import Workload
from tests.bench.suite import Suite

FASTEST_PEERS = ("haproxy", "nginx")
OWN = "superd-forward"
WORKS = (
    Workload("echo50", "rr", connections=50, size=64),
    Workload("echo1", "rr", connections=1, size=64),
    Workload("connect-echo-close", "crr", connections=16, size=64),
    Workload("bulk", "bulk", connections=4, size=65536),
)


def judge(results: Results) -> list[Goal]:
    """Compare the results with the goals."""
    return [
        Goal(
            "echo50, x the better of haproxy and nginx",
            ">=",
            1.0,
            rate_ratio(results, "echo50", FASTEST_PEERS, OWN),
        ),
        Goal(
            "one connection, latency (p50) of the better of haproxy and nginx, x superd's",
            ">=",
            1.0,
            latency_ratio(results, "echo1", FASTEST_PEERS, OWN),
        ),
        Goal(
            "connect-echo-close, x the better of haproxy and nginx",
            ">=",
            0.9,
            rate_ratio(results, "connect-echo-close", FASTEST_PEERS, OWN),
        ),
        Goal(
            "bulk, x the better of haproxy and nginx",
            ">=",
            1.3,
            rate_ratio(results, "bulk", FASTEST_PEERS, OWN),
        ),
        Goal("memory with 1,000 idle sessions, MB above nginx", "<=", 30.0, _memory(results)),
    ]


def _memory(results: Results) -> float | None:
    if OWN not in results.idle or "nginx" not in results.idle:
        return None
    return results.idle[OWN].pss_mb - results.idle["nginx"].pss_mb


PEERS = {
    "haproxy": forwarders.haproxy,
    "nginx": forwarders.nginx,
    "rinetd": forwarders.rinetd,
    "socat": forwarders.socat,
    "socket-proxyd": forwarders.socket_proxyd,
    "xinetd": forwarders.xinetd,
}
SUITE = Suite(
    name="forward",
    own={OWN: forwarders.superd, "direct": forwarders.direct, "python": forwarders.plain},
    peers=PEERS,
    works=WORKS,
    idle=(OWN, *PEERS),
    idle_connections=1_000,
    judge=judge,
)
