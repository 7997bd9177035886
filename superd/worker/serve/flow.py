"""Services that relay datagrams by source: each source is a client with a session, a flow.

Runs in the worker, on the loop. A new source is admitted as a connection is; its later datagrams
are passed on at once. Sources can be forged, so the number of flows is limited to a part of the
descriptors: beyond that the flow that was idle for longest is closed. Never raises.
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
from superd.worker.runtime.scratch import SCRATCH, SCRATCH_SIZE
from superd.worker.serve.datagram import DatagramListener
from superd.worker.serve.relay import RelayingSession
from superd.worker.serve.session import SLOTS

DRAIN_CHECK_INTERVAL = 0.25  # seconds between checks for idle flows while draining
DRAIN_IDLE_TIMEOUT = 2.0  # seconds without a datagram, after which a flow is closed
DESCRIPTOR_SHARE = 4  # the flows of one service have at most every fourth descriptor

_ACCEPTED = int(Count.ACCEPTED)
_ANSWERS = int(Count.ANSWERS)


class FlowListener(DatagramListener):
    """Serves one bound socket, and keeps sending until its last flow has ended."""

    def set_up(self) -> None:
        self.flows: dict[tuple[Any, str], FlowSession] = {}  # idle for longest first
        self.is_draining = False
        self.max_flows = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // DESCRIPTOR_SHARE)

    def serve(self, size: int, peer: Any, local: LocalAddress) -> None:
        key = (peer, local.address.host)
        flow = self.flows.pop(key, None)
        if flow is not None:
            self.flows[key] = flow
            if size > SCRATCH_SIZE:
                self.log_refusal(Refusal.TOO_LONG, peer)
            else:
                flow.take(size)
            return
        refusal = self.guarded(size, peer, local)
        if refusal is not None:
            self.log_refusal(refusal, peer)
            return
        ticket = self.service.gate.admit_flow(NOBODY_KNOWN if self.is_unix else peer[0])
        if isinstance(ticket, Refusal):
            self.record_refusal(ticket, peer, local)
            return
        if self.context.flows[self.service.name] >= self.max_flows:
            self._evict()
        self.service.counts[_ACCEPTED] += 1
        flow = FlowSession()
        flow.open(self, key, peer, local, ticket)
        flow.take(size)

    def _evict(self) -> None:
        """Close the flow that was idle for longest: of this socket, or else of another."""
        others = (other for other in self.context.sockets if isinstance(other, FlowListener))
        for listener in (self, *(other for other in others if other.service is self.service)):
            if listener.flows:
                next(iter(listener.flows.values())).expire(End.EVICTED)
                return

    def count(self, bytes_in: int, answered: int, bytes_out: int) -> None:
        """Do nothing: flows count for themselves."""

    def close(self) -> None:
        """Close the socket once no flow expects an answer any more."""
        self.is_draining = True
        if not self.flows:
            self.sock.close()
            return
        for flow in self.flows.values():
            flow.active_at = self.context.loop.time()
        self.context.loop.call_later(DRAIN_CHECK_INTERVAL, self._close_idle)

    def _close_idle(self) -> None:
        """Close idle flows; their next datagram goes to another worker."""
        now = self.context.loop.time()
        for flow in list(self.flows.values()):
            if (passed := sum(flow.progress())) != flow.seen:
                flow.seen, flow.active_at = passed, now
            elif now - flow.active_at >= DRAIN_IDLE_TIMEOUT:
                flow.expire(End.DRAIN)
        if self.flows:
            self.context.loop.call_later(DRAIN_CHECK_INTERVAL, self._close_idle)

    def forget(self, flow: FlowSession) -> None:
        """Remove a flow that has ended."""
        if self.flows.pop(flow.key, None) is not None:
            self.context.flows[self.service.name] -= 1
        if self.is_draining and not self.flows:
            self.sock.close()


class FlowSession(RelayingSession, RelayedDatagrams):
    """One source, for which a plugin has a relay."""

    __slots__ = (*SLOTS, "key", "listener", "local_address", "relay")

    listener: FlowListener
    key: tuple[Any, str]
    local_address: LocalAddress
    relay: DatagramRelay | None

    def open(
        self,
        listener: FlowListener,
        key: tuple[Any, str],
        peer: Any,
        local: LocalAddress,
        ticket: Ticket,
    ) -> None:
        """Start accounting for the source, and let the plugin make its relay."""
        self.listener, self.key, self.local_address, self.relay = listener, key, local, None
        listener.flows[key] = self
        listener.context.flows[listener.service.name] += 1
        service = listener.service
        local_text = safe(str(local.address))
        self.begin(listener.context, service, listener.transport, peer, ticket, local_text)
        assert service.relay_datagrams is not None
        try:
            relay = service.relay_datagrams(self)
        except BaseException as error:  # noqa: BLE001  a plugin may raise SystemExit and worse
            self.contain(error)
        else:
            self.relay = None if self.is_lost else relay

    def take(self, size: int) -> None:
        """Pass the datagram in SCRATCH to the relay."""
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
        return self.local_address.address

    # What the plugin calls

    def send(self, data: bytes | memoryview) -> None:
        if not self.sockaddr:
            self.listener.log_refusal(Refusal.UNNAMED, self.sockaddr)
        elif self.listener.send(data, self.sockaddr, self.local_address) is not None:
            self.worker_service.counts[_ANSWERS] += 1

    def ended(self, end: End) -> None:
        self.end = self.end or end
        self._drop_relay()
        self.finish()

    # What the worker calls

    def abort(self) -> None:
        self.finish()

    def finish(self) -> None:
        self._cut()
        if not self.is_lost:
            self.leave()
            self.listener.forget(self)
