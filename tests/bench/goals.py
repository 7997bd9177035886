"""The results, and their comparison with superd's goals.

A goal is a ratio to the better of some peers in the same run, or a figure with a bound. Machines
differ and every run has noise, so a missed goal is reported, but is not a failure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tests.bench.idle import IdleFigures
from tests.bench.load import Sample


@dataclass
class Results:
    """All results; `works` by the name of the workload, then by the name of the server."""

    works: dict[str, dict[str, Sample]] = field(default_factory=dict)
    idle: dict[str, IdleFigures] = field(default_factory=dict)
    ready_seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Goal:
    """A bound, and the measured figure (None: not measured)."""

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


def rate_ratio(results: Results, work: str, peers: Sequence[str], of: str) -> float | None:
    """Return a server's rate as a multiple of the best rate among some peers."""
    samples = results.works.get(work, {})
    rates = [samples[peer].rate for peer in peers if peer in samples]
    if of not in samples or not rates or not max(rates):
        return None
    return samples[of].rate / max(rates)


def latency_ratio(results: Results, work: str, peers: Sequence[str], of: str) -> float | None:
    """Return the best median latency among some peers as a multiple of a server's."""
    samples = results.works.get(work, {})
    latencies = [samples[peer].p50_us for peer in peers if peer in samples]
    if of not in samples or not latencies or not samples[of].p50_us:
        return None
    return min(latencies) / samples[of].p50_us
