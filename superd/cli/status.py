"""`superd status`: shows workers, services and counters as tables, JSON or Prometheus metrics.

Runs in the command line. Raises NotPermitted where the daemon belongs to another user.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from superd.cli.daemon import NotRunning, ask_daemon
from superd.cli.figures import UNKNOWN, age, size
from superd.cli.files import daemon_files
from superd.errors import ExitCode
from superd.observe.rows import table

MAX_SHOWN_ADDRESSES = 4  # of one service: a range may have thousands
REFUSED = "refused-"  # prefix of the counters of refusals


def status(file: Path | None, form: str) -> int:
    """Print the status as "text", "json" or "prometheus"; exit 3 where no daemon runs."""
    try:
        answer = ask_daemon(daemon_files(file), "metrics" if form == "prometheus" else "status")
    except NotRunning:
        if form == "prometheus":
            print("superd is not running", file=sys.stderr)
        else:
            print('{"state": "stopped"}' if form == "json" else "superd is not running")
        return int(ExitCode.NOT_RUNNING)
    if form == "prometheus":
        print(answer["text"], end="")
    else:
        print(json.dumps(answer, indent=2) if form == "json" else "\n".join(_lines(answer)))
    return int(ExitCode.OK)


def refusals_of(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the number of refusals by reason, without reasons that have none."""
    return {
        key.removeprefix(REFUSED): value
        for key, value in counts.items()
        if key.startswith(REFUSED) and value
    }


def worker_row(worker: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Return a row of the table of workers."""
    pid, uptime, cpu, memory = (worker[key] for key in ("pid", "uptime", "cpu", "memory"))
    return {
        "worker": UNKNOWN if pid is None else pid,
        "pool": worker["pool"],
        "state": worker["state"],
        "generation": worker["generation"],
        "uptime": UNKNOWN if uptime is None else age(uptime),
        "cpu": UNKNOWN if cpu is None else age(cpu),
        "memory": UNKNOWN if memory is None else size(memory),
    }


def _lines(answer: Mapping[str, Any]) -> list[str]:
    lines = _head(answer)
    lines += ["", *table([worker_row(worker) for worker in answer["workers"]])]
    if answer["resolver"]:
        lines.append(f"resolver {answer['resolver']}")
    lines += ["", *table([_service_row(service) for service in answer["services"]])]
    for name, number in answer["leaving"].items():
        lines.append(f"{name}  not served any more; {number} connections continue")
    lines += [f"{name}  not served: {why}" for name, why in answer["broken"].items()]
    lines += [
        f"{one['service']}  does not listen on {one['addresses']} yet: {one['why']}"
        for one in answer.get("pending", ())
    ]
    for name, enabled in answer["overrides"].items():
        lines.append(f"{name}  {'enabled' if enabled else 'disabled'} by the operator")
    for service in answer["services"]:
        lines += _details(service)
    if answer["bans"]:
        lines += ["", f"{answer['bans']} bans; `superd bans` lists them"]
    if answer["log-failures"]:
        lines += ["", f"{answer['log-failures']} log records were lost"]
    return lines


def _head(answer: Mapping[str, Any]) -> list[str]:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(answer["since"]))
    lines = [
        f"superd {answer['version']} is {answer['state']} since {since}, process {answer['pid']}",
        f"configuration {answer['configuration']}",
        f"generation {answer['generation']}, log level {answer['log-level']}",
    ]
    reload = answer["reload"]
    if reload is not None:
        what = reload["state"] if reload["state"] in ("done", "failed") else "in progress"
        lines.append(": ".join([f"last reload {what}", *reload["problems"][:1]]))
    return lines


def _service_row(service: Mapping[str, Any]) -> dict[str, str | int | float]:
    counts, sees_bytes = service["counts"], service["sees-bytes"]
    listen = service["listen"]
    more = (
        [f"... and {len(listen) - MAX_SHOWN_ADDRESSES} more"]
        if len(listen) > MAX_SHOWN_ADDRESSES
        else []
    )
    return {
        "service": service["name"],
        "active": counts["active"],
        "accepted": counts["accepted"] + counts["datagrams"],
        "per second": UNKNOWN if service["rate"] is None else f"{service['rate']:.1f}",
        "refused": sum(refusals_of(counts).values()),
        "errors": counts["errors"],
        "in": size(counts["bytes-in"]) if sees_bytes else UNKNOWN,
        "out": size(counts["bytes-out"]) if sees_bytes else UNKNOWN,
        "pool": service["pool"],
        "listen": " ".join([*listen[:MAX_SHOWN_ADDRESSES], *more]),
    }


def _details(service: Mapping[str, Any]) -> list[str]:
    """Return the refusals of a service, and the rows of its plugin, such as targets."""
    counts = service["counts"]
    why = [f"{reason} {number}" for reason, number in refusals_of(counts).items()]
    lines = [f"refused: {', '.join(why)}"] if why else []
    if counts["dropped"]:
        lines.append(f"dropped by the kernel: {counts['dropped']}")
    lines += table(service["rows"])
    return ["", service["name"], *(f"  {line}" for line in lines)] if lines else []
