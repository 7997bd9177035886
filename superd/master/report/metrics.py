"""All metrics of superd, as text for Prometheus.

Runs in the master. Changes nothing; raises nothing. Samples of services are in the order of the
configuration. The rows that a service shows of its state become metrics as far as they are numbers.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from superd import __version__
from superd.admission.scoreboard import DURATIONS, REFUSALS, Count
from superd.listen.listener import dropped_datagrams
from superd.master.context import Context, MasterState
from superd.master.report.status import state_of, why_not_ready
from superd.net.addresses import Transport
from superd.observe.metrics import Sample, counter, gauge, histogram, labels
from superd.observe.rows import LONGEST_TEXT, Rows
from superd.process.procfs import Usage, usage_of

MAX_ROW_SAMPLES = 10_000  # of all rows: bounds the text, whatever workers send
WORKER_STATES = ("starting", "ready", "draining", "throttled", "ended")

COUNTERS = {
    Count.ACCEPTED: ("accepted", "Connections accepted, and sources of relayed datagrams."),
    Count.DATAGRAMS: ("datagrams", "Datagrams received."),
    Count.ANSWERS: ("answers", "Datagrams sent in answer."),
    Count.ERRORS: ("errors", "Failures of a service's plugin."),
    Count.BYTES_IN: ("received_bytes", "Bytes received from clients."),
    Count.BYTES_OUT: ("sent_bytes", "Bytes sent to clients."),
    Count.WAITS: ("waits", "Times that clients were kept waiting at a limit."),
}


def metrics(context: Context) -> str:
    """Return all metrics as text."""
    families = (_daemon, _configuration, _workers, _processes, _services)
    return "".join(line for family in families for line in family(context))


def _daemon(context: Context) -> Iterator[str]:
    python = platform.python_version()
    yield from gauge(
        "superd_build_info",
        "Versions of superd and of the Python that runs it.",
        [(labels(version=__version__, python=python), 1)],
    )
    yield from gauge(
        "superd_start_time_seconds",
        "Start time of superd, in seconds since 1970.",
        [("", context.since)],
    )
    yield from gauge(
        "superd_state",
        "1 for the current state of superd.",
        [(labels(state=state.value), int(state is context.state)) for state in MasterState],
    )
    yield from gauge(
        "superd_ready",
        "1 if superd serves on all addresses and each pool has a worker that is ready.",
        [("", int(not why_not_ready(context)))],
    )
    yield from gauge("superd_bans", "Networks that are banned.", [("", len(context.bans))])
    yield from counter(
        "superd_log_failures_total",
        "Lines of the log and of records that a sink did not take.",
        [("", context.log.failures)],
    )
    yield from counter(
        "superd_lost_lines_total",
        "Lines of the log and of records that were lost between a worker and the master.",
        [("", context.tally.scoreboard.lost())],
    )


def _configuration(context: Context) -> Iterator[str]:
    plan = context.current.plan
    daemon = plan.settings.daemon
    yield from gauge(
        "superd_config_info",
        "The configuration in force.",
        [(labels(file=str(plan.settings.file), loop=daemon.loop), 1)],
    )
    yield from gauge(
        "superd_config_generation",
        "1 at the start, and one more with each successful reload.",
        [("", context.current.number)],
    )
    over = [reload for reload in context.reloads if reload.is_over]
    yield from gauge(
        "superd_config_last_reload_successful",
        "0 if the last reload failed.",
        [("", int(not over or over[-1].state == "done"))],
    )
    yield from gauge(
        "superd_config_last_reload_success_timestamp_seconds",
        "When the configuration in force was loaded, in seconds since 1970.",
        [("", context.current.since)],
    )
    yield from counter(
        "superd_config_reloads_total",
        "Reloads, including failed ones.",
        [("", context.reload_number)],
    )
    yield from gauge(
        "superd_services",
        "Services that are served, and services whose plugin does not work.",
        [
            (labels(state="served"), len(plan.services)),
            (labels(state="broken"), len(plan.broken)),
        ],
    )


def _workers(context: Context) -> Iterator[str]:
    counts: Counter[str] = Counter()
    each: list[Sample] = []
    for slot in context.slots:
        of = {"pool": slot.pool.name, "generation": str(slot.generation.number)}
        state = state_of(slot)
        for possible in WORKER_STATES:
            counts[labels(**of, state=possible)] += possible == state
        if slot.child is not None:
            named = {"worker": str(slot.number), "pid": str(slot.child.pid)}
            each.append((labels(**of, **named, state=state), 1))
    yield from gauge("superd_workers", "Workers by pool, generation and state.", counts.items())
    yield from gauge("superd_worker_info", "Each worker, by the number of its slot.", each)
    pools = {pool.name: 0 for pool in context.current.plan.pools} | context.restarts
    yield from counter(
        "superd_worker_restarts_total",
        "Workers that ended and were replaced.",
        [(labels(pool=name), number) for name, number in pools.items()],
    )


def _processes(context: Context) -> Iterator[str]:
    pids = {labels(process="master"): os.getpid()}
    for slot in context.slots:
        if slot.child is not None:
            of = labels(process="worker", pool=slot.pool.name, worker=str(slot.number))
            pids[of] = slot.child.pid
    if context.resolver is not None and context.resolver.pid is not None:
        pids[labels(process="resolver")] = context.resolver.pid
    usages: list[tuple[str, Usage]] = []
    for of, pid in pids.items():
        if (usage := usage_of(pid)) is not None:
            usages.append((of, usage))
    yield from gauge(
        "superd_process_start_time_seconds",
        "Start time of a process, in seconds since 1970.",
        [(of, usage.started) for of, usage in usages],
    )
    yield from counter(
        "superd_process_cpu_seconds_total",
        "Processor time of a process.",
        [(of, usage.cpu) for of, usage in usages],
    )
    yield from counter(
        "superd_process_children_cpu_seconds_total",
        "Processor time of children that have ended; for the master these are workers.",
        [(of, usage.children_cpu) for of, usage in usages],
    )
    yield from gauge(
        "superd_process_resident_memory_bytes",
        "Resident memory of a process; memory that processes share counts for each of them.",
        [(of, usage.memory) for of, usage in usages],
    )
    yield from gauge(
        "superd_process_open_fds",
        "Open descriptors of a process.",
        [(of, usage.descriptors) for of, usage in usages if usage.descriptors is not None],
    )


def _services(context: Context) -> Iterator[str]:
    of_services = {name: labels(service=name) for name in context.current.plan.services}
    info = [
        (labels(service=name, plugin=entry.plugin, pool=pool.name), 1)
        for pool in context.current.plan.pools
        for name, entry in pool.services.items()
    ]
    yield from gauge("superd_service_info", "Each service, its plugin and its pool.", info)
    pending = Counter(of_services[one.service] for one in context.current.listeners.pending)
    yield from gauge(
        "superd_service_pending_addresses",
        "Addresses that could not be bound yet and are tried again.",
        [(of, pending[of]) for of in of_services.values()],
    )
    sums = [(of, context.tally.scoreboard.sums(name)) for name, of in of_services.items()]
    for count, (name, text) in COUNTERS.items():
        samples = [(of, one.counts[count]) for of, one in sums]
        yield from counter(f"superd_service_{name}_total", text, samples)
    yield from gauge(
        "superd_service_connections",
        "Open connections.",
        [(of, one.counts[Count.ACTIVE]) for of, one in sums],
    )
    reasons = [labels(reason=refusal.value) for refusal in REFUSALS]
    yield from counter(
        "superd_service_refused_total",
        "Refused connections, and datagrams that were refused or not answered, by reason.",
        [
            (f"{of},{reason}", number)
            for of, one in sums
            for reason, number in zip(reasons, one.refused, strict=True)
        ],
    )
    yield from histogram(
        "superd_service_connection_duration_seconds",
        "Durations of connections that have ended.",
        DURATIONS,
        [(of, one.durations) for of, one in sums],
    )
    yield from counter(
        "superd_service_dropped_datagrams_total",
        "Datagrams that the kernel dropped because a socket of the service was full.",
        _dropped(context, of_services),
    )
    yield from gauge(
        "superd_service_status",
        "Numbers that services show in `superd status`, such as those of a target of forward.",
        dict(islice(_shown_by_services(context), MAX_ROW_SAMPLES)).items(),
    )


def _dropped(context: Context, of_services: dict[str, str]) -> Iterator[Sample]:
    sums: Counter[str] = Counter()
    with contextlib.suppress(OSError):  # not every system counts these
        for name, address, sock in context.current.listeners.sockets(of_services):
            if address.transport is Transport.UDP:
                sums[of_services[name]] += dropped_datagrams(sock)
    yield from sums.items()


def _shown_by_services(context: Context) -> Iterator[Sample]:
    for slot in context.current.slots:
        for service, rows in (slot.child.rows if slot.child else {}).items():
            yield from _of_rows({"service": service, "worker": str(slot.number)}, rows)


def _of_rows(of: dict[str, str], rows: Rows) -> Iterable[Sample]:
    """Yield the numbers of rows; the first text in a row names it."""
    for row in rows:
        name = next((value for value in row.values() if isinstance(value, str)), "")
        for key, value in row.items():
            if not isinstance(value, str):
                with contextlib.suppress(OverflowError):  # a worker may send any number
                    number = float(value)
                    yield labels(**of, row=name[:LONGEST_TEXT], column=key[:LONGEST_TEXT]), number
