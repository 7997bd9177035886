"""The suite `forward`: superd as a forwarder of ports, beside the ones that are in use.

The forwarder has a core to itself; the load and the backend that answers share the other one, and
`load %` counts both. `direct` is that backend without a forwarder: what is lost against it is the
price of forwarding (its CPU and memory are the backend's). `python` is the plainest forwarder that
can be written in Python: between it and nginx lies the interpreter, between it and superd what
superd does beyond passing bytes on.
"""

from tests.bench import forwarders
from tests.bench.goals import Goal, Results, lead, promptness
from tests.bench.load import Work
from tests.bench.suite import Suite

BEST = ("haproxy", "nginx")
OWN = "superd-forward"
WORKS = (
    Work("echo50", "rr", connections=50, size=64),
    Work("echo1", "rr", connections=1, size=64),
    Work("connect-echo-close", "crr", connections=16, size=64),
    Work("bulk", "bulk", connections=4, size=65536),
)


def judge(results: Results) -> list[Goal]:
    """Hold what was measured against the goals."""
    return [
        Goal(
            "echo50, x the better of haproxy and nginx",
            ">=",
            1.0,
            lead(results, "echo50", BEST, OWN),
        ),
        Goal(
            "one connection, x as prompt (p50) as the better of haproxy and nginx",
            ">=",
            1.0,
            promptness(results, "echo1", BEST, OWN),
        ),
        Goal(
            "connect-echo-close, x the better of haproxy and nginx",
            ">=",
            0.9,
            lead(results, "connect-echo-close", BEST, OWN),
        ),
        Goal(
            "bulk, x the better of haproxy and nginx", ">=", 1.3, lead(results, "bulk", BEST, OWN)
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
