"""The results as tables and, with --json, as a JSON file.

Rates are comparable within one run only. CPU per operation is the steadiest figure. Compare it if
the load's core was the bottleneck (`load %` near 100). An operation of bulk is a chunk of 64 KiB.
"""

import dataclasses
import json
import os
import platform
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tests.bench.goals import Goal, Results

HEADINGS = {
    "rate/s": 0,
    "p50 us": 0,
    "p99 us": 0,
    "CPU us/op": 2,
    "MB/s": 1,
    "errors": 0,
    "PSS MB": 1,
    "load %": 0,
}
"""The figures of a sample in order, each with its number of decimals."""
LATENCIES = ("p50 us", "p99 us")  # bulk has no latency
COLUMN_WIDTH = 11

_BUILT_WITH = sysconfig.get_config_var("CONFIG_ARGS") or ""
MACHINE = {
    "kernel": platform.release(),
    "cores": os.cpu_count(),
    "interpreter": f"{platform.python_implementation()} {platform.python_version()}",
    "profile-guided": "yes" if "--enable-optimizations" in _BUILT_WITH else "no",
}
"""Also affects the figures: profile-guided optimization alone makes up to a fifth."""


def text(results: Results, goals: list[Goal]) -> str:
    """Return the results as tables."""
    parts = [_machine(), _works(results), _idle(results), _goals(goals), _errors(results)]
    return "\n\n".join("\n".join(lines) for lines in map(list, parts) if lines)


def _machine() -> Iterator[str]:
    yield ", ".join(f"{key} {value}" for key, value in MACHINE.items())


def _works(results: Results) -> Iterator[str]:
    if results.works:
        yield _row("work", "server", HEADINGS)
    for work, samples in results.works.items():
        for server, sample in samples.items():
            figures = zip(HEADINGS, dataclasses.astuple(sample), strict=True)
            yield _row(work, server, [_cell(heading, figure) for heading, figure in figures])


def _cell(heading: str, figure: float) -> str:
    if heading in LATENCIES and not figure:
        return "-"
    return f"{figure:.{HEADINGS[heading]}f}"


def _row(work: str, server: str, cells: Iterable[str]) -> str:
    return f"{work:<20}{server:<15}" + "".join(f"{cell:>{COLUMN_WIDTH}}" for cell in cells)


def _idle(results: Results) -> Iterator[str]:
    for server, figures in results.idle.items():
        yield (
            f"idle: {server} holds {figures.connections} connections at "
            f"{figures.bytes_each:.0f} bytes each, {figures.pss_mb:.1f} MB in all; "
            f"a new client is served in {figures.new_client_us:.0f} us "
            f"(slowest {figures.slowest_new_client_us:.0f} us)"
        )


def _goals(goals: list[Goal]) -> Iterator[str]:
    if all(goal.measured is None for goal in goals):
        return
    yield "goals of superd"
    for goal in goals:
        measured = "" if goal.measured is None else f"{goal.measured:.2f}"
        yield f"  {goal.verdict:<13} {measured:>9} ({goal.bound} {goal.target:g}) {goal.text}"


def _errors(results: Results) -> Iterator[str]:
    """List each workload with errors: its figures are unreliable."""
    for work, samples in results.works.items():
        for server, sample in samples.items():
            if sample.errors:
                yield f"ERRORS: {sample.errors} in {work} on {server}"
    for server, figures in results.idle.items():
        if figures.errors:
            yield f"ERRORS: {figures.errors} in idle on {server}"


def write_json(
    path: Path, results: Results, goals: list[Goal], settings: Mapping[str, object]
) -> None:
    """Write all figures to a file, with the machine and the settings."""
    judged = [dataclasses.asdict(goal) | {"verdict": goal.verdict} for goal in goals]
    report = {"machine": MACHINE, "settings": settings, **dataclasses.asdict(results)}
    path.write_text(json.dumps(report | {"goals": judged}, indent=1) + "\n")
