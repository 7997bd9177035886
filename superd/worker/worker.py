"""A worker's life: from the fork to the exit.

Runs in the worker only; `main` never returns. Until it is confined it runs plugins' code as the
master's user, but it has no client yet. If it cannot start, it reports the reason to the master.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from setproctitle import setproctitle

from superd.admission.bans import BanTable
from superd.admission.gate import Counters, Gate
from superd.admission.ledger import Ledger
from superd.admission.limits import Load
from superd.admission.reflection import ReflectionGuard
from superd.admission.scoreboard import ALL, Scoreboard
from superd.config.model import TCPMUX, Confinement, Limits, Service
from superd.errors import ExitCode, SuperdError, reason
from superd.net.addresses import Address, Transport
from superd.observe.connections import ServiceRecords
from superd.observe.records import FloodGate, Record, Threshold, failure
from superd.plugin import registry
from superd.plugin.methods import only_relays
from superd.plugin.service import Service as PluginService
from superd.process import preload
from superd.process.confinement import close_other_descriptors, confine, limit
from superd.process.environment import clean_environment
from superd.process.forking import guard_forks, reset_signals
from superd.worker.blocking.processes import ForkExecutor, PreforkExecutor
from superd.worker.blocking.session import Executor
from superd.worker.blocking.threads import ThreadExecutor
from superd.worker.channel import LISTEN, OBSERVE, Channel
from superd.worker.commands import Commands
from superd.worker.engine import Engine
from superd.worker.lifeline import Lifeline
from superd.worker.preparing import descriptors_of_plugins, prepare_all
from superd.worker.runtime.appended_files import AppendedFiles
from superd.worker.runtime.context import Context
from superd.worker.runtime.heartbeat import Heartbeat
from superd.worker.runtime.loop import WorkerLoop, new_loop
from superd.worker.runtime.output import Output, scope_of
from superd.worker.runtime.queries import MasterQueries
from superd.worker.runtime.service import WorkerService
from superd.worker.serve.server_api import ServerApi


@dataclass(frozen=True)
class Assignment:
    """What one worker serves, and how. `served_ports` and `served_names` are those of all workers
    of superd.
    """

    serial: int
    place: int
    is_first: bool  # of the workers of its pool
    pool: str
    confinement: Confinement
    services: Mapping[str, Service]
    plugins: Mapping[str, registry.Plugin]
    sockets: Sequence[tuple[str, Address, socket.socket]]
    entrances: Mapping[str, socket.socket]  # of the services behind tcpmux, by name
    served_ports: Mapping[Transport, frozenset[int]]  # tcp and udp
    served_names: frozenset[str | bytes]  # unixgram
    scoreboard: Scoreboard
    ledger: Ledger
    bans: BanTable
    threshold: Threshold
    limits: Limits  # the daemon's
    file: Path  # the configuration: relative paths in options start at its directory
    drain_timeout: float  # seconds
    retire_timeout: float  # seconds; 0 for none
    resolver: str  # the address of its socket; "" for none
    loop: str
    is_trial: bool  # serves no client, and is killed with the process group of the preflight


def main(assignment: Assignment, lifeline: Lifeline, output: int, sock: socket.socket) -> NoReturn:
    """Serve until drained, then exit. Called right after the fork, with all signals blocked.

    What the worker, and what it starts, writes to standard output and error goes to `output`.
    """
    row = assignment.scoreboard.row(assignment.place, ALL)
    channel = Channel(sock, assignment.threshold, row)
    code = int(ExitCode.FAILED)
    try:
        reset_signals()
        for standard in (1, 2):
            os.dup2(output, standard)
        _run(assignment, channel, lifeline)
        code = int(ExitCode.OK)
    except BaseException as error:  # noqa: BLE001  whatever it is, the master needs the reason
        code = _report_failure(channel, error)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # without the atexit functions, and the open files, of the master


def _report_failure(channel: Channel, error: BaseException) -> int:
    code = int(ExitCode.FAILED)
    if isinstance(error, SuperdError):
        code = int(error.exit_code)
    elif isinstance(error, PermissionError):
        code = int(ExitCode.NOT_PERMITTED)
    lines = "".join(traceback.format_exception(error)).splitlines()
    if not isinstance(error, (SuperdError, OSError)):
        text = f"the worker failed: {reason(error)}"
        channel.log(Record("error", text, detail=tuple(lines[-40:])))
    channel.failed(code, str(error) if isinstance(error, SuperdError) else reason(error))
    return code


def _run(assignment: Assignment, channel: Channel, lifeline: Lifeline) -> None:
    """Take the steps of `superd.plugin.Service` with all services of the worker."""
    setproctitle(f"superd: worker {assignment.pool}")
    assignment.bans.make_read_only()
    sockets = [*(sock for *_, sock in assignment.sockets), *assignment.entrances.values()]
    lock = assignment.ledger.lock.descriptor
    ours = {channel.sock.fileno(), lock, *lifeline.ends, *(sock.fileno() for sock in sockets)}
    gc.collect()  # garbage of the master closes its descriptors before their numbers are reused
    close_other_descriptors(ours)
    clean_environment()
    limit(assignment.confinement, has_own_session=not assignment.is_trial)

    output = Output(channel.log, assignment.threshold)
    output.take_over()
    plugins, files = prepare_all(assignment.services, assignment.plugins, assignment.file.parent)
    forks = any(entry.forks for entry in assignment.services.values())
    kept = descriptors_of_plugins(assignment.services, ours) if forks else ()
    loop = _warm_loop(assignment.loop, plugins.values(), forks=forks)
    heartbeat = Heartbeat(loop, lifeline)

    channel.confined(files)
    if assignment.confinement.chroot:
        preload.load_name_services()
        confine(assignment.confinement)
        preload.seal()
    else:
        confine(assignment.confinement)
        _report_late_imports(channel)
    gc.collect()
    gc.freeze()

    guard = ReflectionGuard(assignment.served_ports[Transport.UDP], assignment.served_names)
    context = Context(
        loop,
        assignment.serial,
        channel.log,
        assignment.threshold,
        channel.events,
        guard,
        assignment.drain_timeout,
        assignment.retire_timeout,
        heartbeat,
        str(assignment.file),
        assignment.resolver,
        tend_output=output.tend,
    )
    output.owner_of = heartbeat.owner_of
    _serve(assignment, context, plugins, channel, kept, AppendedFiles(files))
    for name, plugin in plugins.items():
        try:
            scope_of(name).run(plugin.close)
        except BaseException as error:  # noqa: BLE001  the other plugins need closing as well
            text = f"plugin {plugin.name} failed in close"
            channel.log(failure(text, error, service=name))


def _executor(
    context: Context, service: WorkerService, channel: Channel, kept: Collection[int]
) -> Executor | None:
    """Return what runs the handlers of a service if they block; None if they do not."""
    if service.blocking is None:
        return None
    if not service.entry.forks:
        return ThreadExecutor(context, service)
    executor = ForkExecutor if service.entry.model == "fork" else PreforkExecutor
    return executor(context, service, channel, kept)


def _warm_loop(kind: str, plugins: Iterable[PluginService], *, forks: bool) -> WorkerLoop:
    """Return an event loop for these services that has opened all files that it needs.

    libuv, below uvloop, reads the kernel's version from /proc, and opens /dev/null for its first
    stream: in a jail it would open the root directory in its place.
    """
    relays = all(only_relays(type(plugin)) for plugin in plugins)
    loop = new_loop(kind, only_relays=relays, forks=forks)
    asyncio.set_event_loop(loop)
    ours, theirs = socket.socketpair()
    transport, _ = loop.run_until_complete(loop.connect_accepted_socket(asyncio.Protocol, ours))
    transport.close()
    theirs.close()
    return loop


def _serve(
    assignment: Assignment,
    context: Context,
    plugins: Mapping[str, PluginService],
    channel: Channel,
    kept: Collection[int],
    files: AppendedFiles,
) -> None:
    engine = Engine(context)
    services: dict[str, WorkerService] = {}
    queries = MasterQueries(context.loop, channel.observe)
    counters = Counters(assignment.ledger, assignment.scoreboard, assignment.place, Load())
    for name, plugin in plugins.items():
        entry = assignment.services[name]
        gate = Gate.of(name, entry, assignment.limits, counters, assignment.bans)
        records = ServiceRecords(context.connection_log, name, entry.record)
        services[name] = WorkerService.of(name, entry, plugin, gate, records)
        entrances = assignment.entrances if entry.plugin == TCPMUX else {}
        ports = assignment.served_ports
        plugin._server = ServerApi(
            context, channel, name, entry, entrances, ports, records, queries
        )
        engine.add(services[name], _executor(context, services[name], channel, kept))

    def listen(name: str, address: Address, sock: socket.socket) -> None:
        # one source's datagrams belong to one worker, and a plugin gets a listener from one
        by_source = address.transport.is_datagram and services[name].relay_datagrams is not None
        if assignment.is_first or not (by_source or services[name].entry.wait):
            engine.listen(services[name], address, sock)
        else:
            sock.close()  # or the address would stay in use while this worker drains

    def listen_also(service: str, transport: str, files: Sequence[int] = ()) -> None:
        if not files:
            text = "no descriptor was free for a listener; it is served once workers are replaced"
            channel.log(Record("error", text, service=service))
            return
        sock = socket.socket(fileno=files[0])
        listen(service, Address.from_sockaddr(Transport(transport), sock.getsockname()), sock)

    for one in assignment.sockets:
        listen(*one)
    loop = context.loop

    def handle_messages() -> None:
        for message in channel.messages():
            handlers_by_kind[message.pop("kind")](**message)
        if channel.is_closed:
            loop.remove_reader(channel.sock)
            engine.drain_without_master()

    commands = Commands(context, channel, files, engine.renew_processes, engine.release)
    handlers_by_kind: dict[str, Callable[..., None]] = {
        **commands.by_kind,
        OBSERVE: queries.take_answer,
        LISTEN: listen_also,
    }

    def ready() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
        engine.watch_status(channel.status)
        channel.ready()

    handlers = {
        signal.SIGTERM: engine.drain,
        signal.SIGQUIT: engine.stop,
        signal.SIGUSR1: engine.retire,
    }
    # uvloop loses signals that arrive before it runs
    signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    loop.add_reader(channel.sock, handle_messages)
    _report_stray_errors(context.flood_gate)
    guard_forks(engine.become_copy)
    loop.run_until_complete(_start_plugins(assignment, plugins))
    engine.run(ready)


async def _start_plugins(assignment: Assignment, plugins: Mapping[str, PluginService]) -> None:
    for name, plugin in plugins.items():
        try:
            with assignment.plugins[assignment.services[name].plugin].running("start"):
                scope_of(name).run(plugin.start)
        except registry.PluginError as error:
            raise SuperdError(f"service.{name}: {error}") from error


def _report_late_imports(channel: Channel) -> None:
    def report(module: str) -> None:
        message = f"late import of {module!r}: a chroot would refuse it"
        channel.log(Record("debug", message))

    sys.meta_path.insert(0, preload.LateImportReporter(report))


def _report_stray_errors(gate: FloodGate) -> None:
    """Log exceptions of threads and finalizers as well.

    Python itself would write them to standard error, which a daemon does not have.
    """

    def in_thread(raised: threading.ExceptHookArgs) -> None:
        if raised.exc_value is not None and not isinstance(raised.exc_value, SystemExit):
            name = raised.thread.name if raised.thread else "unknown"
            record = failure(f"a plugin's thread {name} failed", raised.exc_value)
            gate.report(("thread", raised.exc_type), record)

    def unraisable(raised: sys.UnraisableHookArgs) -> None:
        if raised.exc_value is not None:
            where = raised.err_msg or "in a finalizer"
            gate.report(("stray", raised.exc_type), failure(where, raised.exc_value))

    threading.excepthook = in_thread
    sys.unraisablehook = unraisable
