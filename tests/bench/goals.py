"""The goals that superd sets itself, and what was measured for each.

A goal is a ratio to the better of some peers in the same run, or a figure with a bound. Machines
differ and no run is free of noise, so a missed goal is news, never a failure.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tests.bench.idle import IdleFigures
from tests.bench.load import Sample

INETDS = ("xinetd", "openbsd-inetd")


@dataclass
class Results:
    """All that was measured; works by their name, then by the server's name."""

    works: dict[str, dict[str, Sample]] = field(default_factory=dict)
    idle: dict[str, IdleFigures] = field(default_factory=dict)
    ready_seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Goal:
    """A bound, and what was measured (None: nothing)."""

    text: str
    bound: Literal[">=", "<="]
    target: float
    measured: float | None

    @property
    def verdict(self) -> Literal["reached", "missed", "not measured"]:
        if self.measured is None:
            return "not measured"
        above = self.measured >= self.target
        below = self.measured <= self.target
        return "reached" if (above if self.bound == ">=" else below) else "missed"


def judge(results: Results) -> list[Goal]:
    """Hold what was measured against the goals."""
    return [
        Goal("echo50, x xinetd", ">=", 1.3, _lead(results, "echo50", ["xinetd"])),
        Goal(
            "connect-echo-close, x the better inetd",
            ">=",
            10.0,
            _lead(results, "connect-echo-close", INETDS),
        ),
        Goal("daytime, x the better inetd", ">=", 1.0, _lead(results, "daytime", INETDS)),
        Goal("bulk, x the better inetd", ">=", 2.0, _lead(results, "bulk", INETDS)),
        Goal(
            "a program run, x xinetd",
            ">=",
            1.0,
            _lead(results, "program", ["xinetd"], "superd-program"),
        ),
        Goal(
            "a program run, x openbsd-inetd",
            ">=",
            1.2,
            _lead(results, "program", ["openbsd-inetd"], "superd-program"),
        ),
        Goal(
            "an echo that blocks, preforked, x xinetd's forking one",
            ">=",
            5.0,
            _lead(results, "connect-echo-close", ["xinetd"], of="superd-prefork"),
        ),
        Goal(
            "daytime with policy and records, x the better inetd",
            ">=",
            1.0,
            _lead(results, "daytime", INETDS, of="superd-policy"),
        ),
        Goal("policy and records, us of CPU a connection", "<=", 10.0, _cost_of_policy(results)),
        Goal(
            "daytime with 10,000 networks, x with three",
            ">=",
            0.95,
            _lead(results, "daytime", ["superd-policy"], of="superd-networks"),
        ),
        Goal("memory of master and worker, MB", "<=", 45.0, _memory(results)),
        Goal("ready after exec, s", "<=", 0.5, _ready(results)),
        Goal("memory of an idle connection, bytes", "<=", 4096.0, _idle(results)),
    ]


def _lead(results: Results, work: str, peers: Sequence[str], of: str = "superd") -> float | None:
    """Return a server's rate as a multiple of the best rate among some peers."""
    samples = results.works.get(work, {})
    rates = [samples[peer].rate for peer in peers if peer in samples]
    if of not in samples or not rates or not max(rates):
        return None
    return samples[of].rate / max(rates)


def _cost_of_policy(results: Results) -> float | None:
    """Return how much more CPU time a connection takes with policy and records."""
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
