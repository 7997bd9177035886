"""`superd top`: shows services and workers with their rates, once a second.

Runs in the command line. At a terminal it draws until q or Ctrl-C; elsewhere it prints one
snapshot. Raises SuperdError where the daemon does not run, or ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superd.cli.daemon import connected
from superd.cli.figures import UNKNOWN, size
from superd.cli.files import DaemonFiles, daemon_files
from superd.cli.status import refusals_of
from superd.errors import ExitCode
from superd.observe.rows import table

INTERVAL = 1.0  # seconds between two snapshots
MIN_NAME_WIDTH = 8  # characters of a name, also on the narrowest screen

Cells = dict[str, str | int | float]


@dataclass(frozen=True)
class Snapshot:
    """Services and workers with their counts since the start, at one moment."""

    moment: float
    status: dict[str, Any]
    traffic: dict[str, dict[str, int]]

    @classmethod
    def at(cls, files: DaemonFiles) -> Snapshot:
        with connected(files) as connection:  # a new one: the master drops an idle connection
            traffic = connection.request("traffic")["traffic"]
            return cls(time.monotonic(), connection.request("status"), traffic)


def top(file: Path | None, *, once: bool) -> int:
    """Show services and workers with their rates."""
    files = daemon_files(file)
    before = Snapshot.at(files)
    if once or not sys.stdout.isatty():
        time.sleep(INTERVAL)
        print("\n".join(_as_text(before, Snapshot.at(files))))
    else:
        _draw(files, before)
    return int(ExitCode.OK)


def _draw(files: DaemonFiles, before: Snapshot) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def drawn(rows: list[Cells]) -> Table:
        made = Table(box=None, pad_edge=False, header_style="bold")
        for key in rows[0] if rows else ():
            if key in _TEXTS:
                made.add_column(key, no_wrap=True, ratio=1, min_width=MIN_NAME_WIDTH)
            else:
                made.add_column(key, no_wrap=True, justify="right")
        for row in rows:
            made.add_row(*(Text(str(value)) for value in row.values()))
        # on a narrow screen names are shortened before figures
        made.expand = live.console.measure(made).maximum >= live.console.width
        return made

    with _keys() as keys, Live(screen=True, auto_refresh=False) as live:
        while not _wants_to_quit(keys):
            now = Snapshot.at(files)
            title = Text(f"{_title(now)}\nq quits", no_wrap=True, overflow="ellipsis")
            services, workers = drawn(_services(before, now)), drawn(_workers(before, now))
            live.update(Group(title, Text(), services, Text(), workers), refresh=True)
            before = now


def _wants_to_quit(keys: int | None) -> bool:
    """Wait until the next snapshot is due; return whether the user typed q."""
    end = time.monotonic() + INTERVAL
    while (left := end - time.monotonic()) > 0:
        typed, _, _ = select.select([] if keys is None else [keys], [], [], left)
        for descriptor in typed:
            keys_typed = os.read(descriptor, 64).lower()
            if not keys_typed or b"q" in keys_typed:  # or the terminal was closed
                return True
    return False


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """Yield the keyboard's descriptor, unbuffered and without echo; None without a terminal."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield None
        return
    keys = sys.stdin.fileno()
    before = termios.tcgetattr(keys)
    try:
        tty.setcbreak(keys)
        yield keys
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)


def _as_text(before: Snapshot, now: Snapshot) -> list[str]:
    return [
        _title(now), "", *table(_services(before, now)), "", *table(_workers(before, now))
    ]  # fmt: skip


def _title(now: Snapshot) -> str:
    status = now.status
    return f"superd is {status['state']}, process {status['pid']}, {status['configuration']}"


_TEXTS = ("service", "pool", "state")


def _services(before: Snapshot, now: Snapshot) -> list[Cells]:
    counted = {one["name"]: one["counts"] for one in before.status["services"]}
    seconds = now.moment - before.moment
    rows: list[Cells] = []
    for service in now.status["services"]:
        name, counts = service["name"], service["counts"]
        was = counted.get(name)
        rows.append(
            {
                "service": name,
                "active": counts["active"],
                "accepted/s": _rate(_accepted, was, counts, seconds),
                "refused/s": _rate(_refused, was, counts, seconds),
                "in/s": _bytes(before.traffic.get(name), now.traffic.get(name), "in", seconds),
                "out/s": _bytes(before.traffic.get(name), now.traffic.get(name), "out", seconds),
            }
        )
    return rows


def _workers(before: Snapshot, now: Snapshot) -> list[Cells]:
    used = {one["pid"]: one["cpu"] for one in before.status["workers"]}
    seconds = now.moment - before.moment
    rows: list[Cells] = []
    for worker in now.status["workers"]:
        then, cpu, memory = used.get(worker["pid"]), worker["cpu"], worker["memory"]
        share = UNKNOWN if None in (then, cpu) else f"{(cpu - then) / seconds:.0%}"
        rows.append(
            {
                "worker": UNKNOWN if worker["pid"] is None else worker["pid"],
                "pool": worker["pool"],
                "state": worker["state"],
                "generation": worker["generation"],
                "cpu": share,
                "memory": UNKNOWN if memory is None else size(memory),
            }
        )
    return rows


def _accepted(counts: Mapping[str, int]) -> int:
    return counts["accepted"] + counts["datagrams"]


def _refused(counts: Mapping[str, int]) -> int:
    return sum(refusals_of(counts).values())


def _rate(
    of: Callable[[Mapping[str, int]], int],
    was: Mapping[str, int] | None,
    now: Mapping[str, int],
    seconds: float,
) -> str:
    """Return the increase per second; a new service has no rate yet."""
    return UNKNOWN if was is None else f"{(of(now) - of(was)) / seconds:.0f}"


def _bytes(
    was: Mapping[str, int] | None, now: Mapping[str, int] | None, key: str, seconds: float
) -> str:
    """The same for bytes. The count drops if a worker crashes, as its bytes are then lost."""
    if was is None or now is None:
        return UNKNOWN
    return size(max(0, now[key] - was[key]) / seconds)
