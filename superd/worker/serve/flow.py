"""Datagrams of services that carry them by source: each source is a client with a session.

Runs in the worker, on the loop. A source that is new has to be admitted as a connection has; what
comes from it later is passed on at once. Sources can be forged, so that there are never more
sessions than descriptors to serve with: the one that was quiet for the longest makes room. Never
raises.
"""

from __future__ import annotations

import resource
from typing import Any

from superd.admission.gate import Ticket
from superd.admission.refusals import Refusal
from superd.admission.rules import NOBODY_KNOWN
from superd.admission.scoreboard import Count
from superd.net.addresses import Address
from superd.net.pktinfo import LocalAddress
from superd.observe.connections import End, safe
from superd.plugin.relay import DatagramRelay, RelayedDatagrams
from superd.worker.runtime.scratch import LARGEST, SCRATCH
from superd.worker.serve.datagram import DatagramListener
from superd.worker.serve.relay import RelayingSession
from superd.worker.serve.session import SLOTS

LOOK = 0.25  # seconds between looks at the sources while draining
QUIET = 2.0  # seconds without a datagram, until a source has all of its answers
PART = 4  # of all descriptors: one service's sources have at most every fourth

_ACCEPTED = int(Count.ACCEPTED)
_ANSWERS = int(Count.ANSWERS)


class FlowListener(DatagramListener):
    """Serves one bound socket, and goes on sending until its last session has ended."""

    def set_up(self) -> None:
        self.flows: dict[tuple[Any, str], FlowSession] = {}  # who was quiet for the longest first
        self.is_let_go = False
        self.most = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // PART)

    def serve(self, size: int, peer: Any, asked: LocalAddress) -> None:
        key = (peer, asked.address.host)
        flow = self.flows.pop(key, None)
        if flow is not None:
            self.flows[key] = flow
            if size > LARGEST:
                self.refuse(Refusal.TOO_LONG, peer)
            else:
                flow.take(size)
            return
        refusal = self.guarded(size, peer, asked)
        if refusal is not None:
            self.refuse(refusal, peer)
            return
        ticket = self.service.gate.admit_flow(NOBODY_KNOWN if self.is_unix else peer[0])
        if isinstance(ticket, Refusal):
            self.turn_away(ticket, peer, asked)
            return
        if self.context.flows[self.service.name] >= self.most:
            self._make_room()
        self.service.counts[_ACCEPTED] += 1
        flow = FlowSession()
        flow.open(self, key, peer, asked, ticket)
        flow.take(size)

    def _make_room(self) -> None:
        """End the session of this socket that was quiet for the longest; of another if need be."""
        others = (other for other in self.context.sockets if isinstance(other, FlowListener))
        for listener in (self, *(other for other in others if other.service is self.service)):
            if listener.flows:
                next(iter(listener.flows.values())).expire(End.EVICTED)
                return

    def count(self, bytes_in: int, answered: int, bytes_out: int) -> None:
        """Leave that to the sessions."""

    def let_go(self) -> None:
        """Wait for the answers that sources are still to have, before the socket is closed."""
        self.is_let_go = True
        if not self.flows:
            self.sock.close()
            return
        for flow in self.flows.values():
            flow.active_at = self.context.loop.time()
        self.context.loop.call_later(LOOK, self._end_quiet)

    def _end_quiet(self) -> None:
        """End the sessions of sources that nothing has come for; what they send goes elsewhere."""
        now = self.context.loop.time()
        for flow in list(self.flows.values()):
            if (passed := sum(flow.progress())) != flow.seen:
                flow.seen, flow.active_at = passed, now
            elif now - flow.active_at >= QUIET:
                flow.expire(End.DRAIN)
        if self.flows:
            self.context.loop.call_later(LOOK, self._end_quiet)

    def forget(self, flow: FlowSession) -> None:
        """Take note that a session is over."""
        if self.flows.pop(flow.key, None) is not None:
            self.context.flows[self.service.name] -= 1
        if self.is_let_go and not self.flows:
            self.sock.close()


class FlowSession(RelayingSession, RelayedDatagrams):
    """One source, that a plugin has a relay for."""

    __slots__ = (*SLOTS, "asked", "key", "listener", "relay")

    listener: FlowListener
    key: tuple[Any, str]
    asked: LocalAddress
    relay: DatagramRelay | None

    def open(
        self,
        listener: FlowListener,
        key: tuple[Any, str],
        peer: Any,
        asked: LocalAddress,
        ticket: Ticket,
    ) -> None:
        """Enter the books, and have the plugin make its relay."""
        self.listener, self.key, self.asked, self.relay = listener, key, asked, None
        listener.flows[key] = self
        listener.context.flows[listener.service.name] += 1
        service = listener.service
        local = safe(str(asked.address))
        self.begin(listener.context, service, listener.transport, peer, ticket, local)
        assert service.relay_datagrams is not None
        try:
            relay = service.relay_datagrams(self)
        except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
            self.contain(error)
        else:
            self.relay = None if self.is_lost else relay

    def take(self, size: int) -> None:
        """Go on with what has been read into SCRATCH."""
        if self.relay is not None:
            try:
                self.relay.take(SCRATCH[:size].tobytes())
            except BaseException as error:  # noqa: BLE001
                self.contain(error)

    @property
    def is_lost(self) -> bool:
        return self.listener.flows.get(self.key) is not self

    def raw_socket(self) -> None:
        return None

    @property
    def local(self) -> Address:
        return self.asked.address

    # What the plugin calls

    def send(self, data: bytes | memoryview) -> None:
        if not self.sockaddr:
            self.listener.refuse(Refusal.UNNAMED, self.sockaddr)
        elif self.listener.send(data, self.sockaddr, self.asked) is not None:
            self.worker_service.counts[_ANSWERS] += 1

    def ended(self, end: End) -> None:
        self.end = self.end or end
        self._let_go()
        self.finish()

    # What the worker calls

    def abort(self) -> None:
        self.finish()

    def finish(self) -> None:
        self._cut()
        if not self.is_lost:
            self.leave()
            self.listener.forget(self)
