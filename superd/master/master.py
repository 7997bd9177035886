"""The master's loop: signals, workers, listeners, time.

Runs in the master, single-threaded. Never accepts a connection or reads a datagram of a service,
never imports a plugin. A signal handler only queues; `handle_...` below does the work, and its
docstring is the operator's manual.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

from superd import __version__
from superd.admission.scoreboard import Scoreboard
from superd.config.model import Settings
from superd.errors import ExitCode
from superd.master.children import Child, Throttle, fork_child, reap
from superd.master.control import ControlSocket
from superd.master.logs import Log
from superd.master.pools import Pool
from superd.net.addresses import Transport
from superd.net.listeners import Listener, renew
from superd.observe.records import decoded
from superd.plugin.registry import Plugin
from superd.worker import channel
from superd.worker.engine import GRACE
from superd.worker.worker import Assignment
from superd.worker.worker import main as worker_main

WATCH = 0.4  # seconds between looks at the listeners: sabotage is repaired within a second
LAST_WORD = 0.5  # seconds from asking a worker to end at once to killing it


class State(Enum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"


@dataclass(eq=False)
class Place:
    """Where one worker of a pool belongs, and a row of the scoreboard."""

    number: int
    pool: Pool
    throttle: Throttle
    child: Child | None = None
    due: float | None = 0.0  # when to start the next worker


class Master:
    """Keeps the workers of all pools running until it is told to stop."""

    def __init__(
        self,
        settings: Settings,
        pools: list[Pool],
        plugins: dict[str, Plugin],
        listeners: list[Listener],
        log: Log,
        broken: dict[str, str],
    ) -> None:
        self.settings = settings
        self.pools = pools
        self.plugins = plugins
        self.listeners = listeners
        self.log = log
        self.broken = broken
        self.state = State.STARTING
        self.since = time.time()
        self.failure: tuple[int, str] | None = None
        self.places: list[Place] = []
        for pool in pools:
            for _ in range(pool.workers):
                self.places.append(Place(len(self.places), pool, Throttle()))
        names = [name for pool in pools for name in pool.services]
        self.scoreboard = Scoreboard(names, len(self.places))
        self.selector = selectors.DefaultSelector()
        self.control: ControlSocket | None = None
        self._serial = 0
        self._kill_at: float | None = None
        self._watch_at = 0.0
        self._wakeup = self._catch_signals()

    def open_control(self) -> None:
        """Answer `superd status`."""
        path = self.settings.daemon.control_socket
        if path is not None:
            self.control = ControlSocket(path, self.selector, self.answer)

    def run(self, ready: Callable[[], None]) -> int:
        """Start the workers, call `ready` once all of them are, and serve; return the exit code."""
        while self.state in (State.STARTING, State.SERVING) or self._living():
            self._start_due()
            for key, _ in self.selector.select(self._until_next()):
                key.data()
            self._keep_time()
            if self.state is State.STARTING and all(p.child and p.child.ready for p in self.places):
                self.state = State.SERVING
                ready()
        self.close()
        return self.failure[0] if self.failure else ExitCode.OK

    def close(self) -> None:
        """Let go of every address, file and descriptor."""
        if self.control is not None:
            self.control.close()
            self.control = None
        for listener in self.listeners:
            listener.close()

    # Signals

    def _catch_signals(self) -> socket.socket:
        """Have signals written to a socket that the loop reads; nothing happens in a handler.

        Whoever started superd may have had signals blocked or ignored, so all is set anew.
        """
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._writer = writer
        for number in _handlers(self):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        self.selector.register(reader, selectors.EVENT_READ, self._signalled)
        return reader

    def _signalled(self) -> None:
        handlers = _handlers(self)
        with contextlib.suppress(BlockingIOError):
            for number in dict.fromkeys(self._counted(self._wakeup.recv(4096))):
                handlers[number]()

    def _counted(self, numbers: bytes) -> list[int]:
        """Return the signals that came; two TERM at once are a TERM and an INT."""
        again = numbers.count(signal.SIGTERM) > 1
        return [*numbers, *([signal.SIGINT] if again else [])]

    def handle_term(self) -> None:
        """TERM: accept no more, let connections finish for drain-timeout, then stop. A second
        TERM stops at once.
        """
        if self.state in (State.DRAINING, State.STOPPING):
            self.handle_int()
            return
        self.log.info("stopping: connections may finish")
        self.state = State.DRAINING
        self._stop_listening()
        self._signal_all(signal.SIGTERM)
        self._kill_at = time.monotonic() + self.settings.daemon.drain_timeout + 2 * GRACE

    def handle_int(self) -> None:
        """INT, QUIT: stop at once."""
        if self.state is not State.STOPPING:
            self.log.info("stopping at once")
            self.state = State.STOPPING
            self._stop_listening()
            self._signal_all(signal.SIGQUIT)
            self._kill_at = time.monotonic() + LAST_WORD

    def handle_hup(self) -> None:
        """HUP: nothing yet; restart superd to have a changed configuration read."""
        self.log.warning("HUP: the configuration is read at start only; the service goes on")

    def handle_usr2(self) -> None:
        """USR2: nothing yet; it is kept for an upgrade in place."""
        self.log.warning("USR2: an upgrade takes a restart; the service goes on")

    def handle_usr1(self) -> None:
        """USR1: open log files anew, after they were renamed."""
        self.log.reopen()
        self.log.info("log files reopened")

    def handle_chld(self) -> None:
        """CHLD: reap; a worker that has died is replaced."""
        children = {place.child.pid: place for place in self.places if place.child}
        for pid, code in reap():
            if pid in children:
                self._ended(children[pid], code)

    # Workers

    def _living(self) -> bool:
        return any(place.child for place in self.places)

    def _signal_all(self, number: signal.Signals) -> None:
        for place in self.places:
            if place.child:
                place.child.signal(number)

    def _stop_listening(self) -> None:
        for listener in self.listeners:
            listener.close()
        self.listeners = []

    def _start_due(self) -> None:
        now = time.monotonic()
        for place in self.places:
            if place.due is not None and place.due <= now and place.child is None:
                self._start(place)

    def _start(self, place: Place) -> None:
        self._serial += 1
        pool = place.pool
        assignment = Assignment(
            serial=self._serial,
            place=place.number,
            pool=pool.name,
            confinement=pool.confinement,
            services=pool.services,
            plugins=self.plugins,
            sockets=[
                (listener.service, listener.address, listener.socket)
                for listener in self.listeners
                if listener.service in pool.services
            ],
            served_ports=frozenset(
                listener.address.port
                for listener in self.listeners
                if listener.address.transport is Transport.UDP
            ),
            scoreboard=self.scoreboard,
            directory=self.settings.file.parent,
            drain_timeout=self.settings.daemon.drain_timeout,
            loop=self.settings.daemon.loop,
        )
        pid, line = fork_child(partial(worker_main, assignment))
        child = Child(pid, pool, place.number, self._serial, line, time.monotonic())
        place.child, place.due = child, None
        self.selector.register(line, selectors.EVENT_READ, partial(self._heard, child))

    def _heard(self, child: Child) -> None:
        """Take a worker's messages; one that sends anything else is ended."""
        if child.channel.fileno() < 0:
            return  # it was reaped in the same turn of the loop
        try:
            messages = child.messages()
            for message in messages:
                self._take(child, message)
        except (ValueError, TypeError, KeyError) as error:
            self.log.error(f"worker {child.pid} sent what is no message: {error}")
            child.signal(signal.SIGKILL)
            messages = []
        if not messages:
            self.selector.unregister(child.channel)  # reaping follows

    def _take(self, child: Child, message: dict[str, Any]) -> None:
        kind = message.pop("kind")
        if kind == channel.LOG:
            self.log.write(decoded(message))
        elif kind == channel.READY:
            child.ready = True
        elif kind == channel.FAILED:
            child.failure = (int(message["exit_code"]), str(message["text"]))
        else:
            raise ValueError(f"unknown kind {kind!r}")

    def _ended(self, place: Place, code: int) -> None:
        """A worker is gone: hear its last words, then decide when the next one starts."""
        child = place.child
        assert child is not None
        if child.channel in self.selector.get_map():
            self._heard(child)
        if child.channel in self.selector.get_map():
            self.selector.unregister(child.channel)
        child.channel.close()
        place.child = None
        self.scoreboard.vacate(place.number)
        how = (
            f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        )
        what = f"worker {child.pid} of pool {place.pool.name}"
        if self.state is State.STARTING:
            text = child.failure[1] if child.failure else f"{what} {how} before it was ready"
            self.failure = (child.failure[0] if child.failure else ExitCode.FAILED, text)
            self.log.error(text)
            self.handle_int()
        elif self.state is State.SERVING:
            now = time.monotonic()
            delay = place.throttle.delay(now, was_ready=child.ready)
            place.due = now + delay
            why = f": {child.failure[1]}" if child.failure else ""
            when = f"in {delay:.0f} s" if delay else "now"
            self.log.error(f"{what} {how}{why}; its successor starts {when}")

    # Time

    def _until_next(self) -> float:
        """Return the seconds until something is due."""
        times = [place.due for place in self.places if place.due is not None and not place.child]
        times.append(self._watch_at)
        if self._kill_at is not None:
            times.append(self._kill_at)
        return max(0.0, min(times) - time.monotonic())

    def _keep_time(self) -> None:
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = now + LAST_WORD
            self._signal_all(signal.SIGKILL)
        if now >= self._watch_at:
            self._watch_at = now + WATCH
            self._watch_listeners()

    def _watch_listeners(self) -> None:
        for number, listener in enumerate(self.listeners):
            try:
                done = listener.repair()
            except OSError:
                self.listeners[number] = renew(listener)
                self._replace_workers(listener.service)
                done = "was broken for good and made anew, with new workers"
            if done:
                self.log.error(f"{listener.address} {done}; repaired", listener.service)

    def _replace_workers(self, service: str) -> None:
        for place in self.places:
            if place.child and service in place.pool.services:
                place.child.signal(signal.SIGTERM)

    # Control

    def answer(self, request: str) -> Any:
        """Return what `superd status` shows."""
        if request != "status":
            return {"error": f"unknown request {request!r}"}
        return {
            "version": __version__,
            "pid": os.getpid(),
            "state": self.state.value,
            "since": self.since,
            "configuration": str(self.settings.file),
            "log-failures": self.log.failures,
            "workers": [self._worker(place) for place in self.places],
            "services": [
                self._service(pool, name) for pool in self.pools for name in pool.services
            ],
            "broken": self.broken,
        }

    def _worker(self, place: Place) -> dict[str, Any]:
        child = place.child
        state = "throttled" if child is None else "ready" if child.ready else "starting"
        return {"pool": place.pool.name, "pid": child.pid if child else None, "state": state}

    def _service(self, pool: Pool, name: str) -> dict[str, Any]:
        addresses = [str(entry.address) for entry in self.listeners if entry.service == name]
        return {
            "name": name,
            "plugin": pool.services[name].plugin,
            "pool": pool.name,
            "listen": addresses,
            "counts": self.scoreboard.totals(name),
        }


def _handlers(master: Master) -> dict[int, Callable[[], None]]:
    return {
        signal.SIGTERM: master.handle_term,
        signal.SIGINT: master.handle_int,
        signal.SIGQUIT: master.handle_int,
        signal.SIGHUP: master.handle_hup,
        signal.SIGUSR1: master.handle_usr1,
        signal.SIGUSR2: master.handle_usr2,
        signal.SIGCHLD: master.handle_chld,
    }
