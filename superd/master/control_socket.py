"""The control socket: answers the requests of `superd status` and other commands, in lines of JSON.

Runs in the master; superd/cli/daemon.py is the client's half. Serves only the daemon's user and
root, by the socket's mode and by the peer's credentials (unix(7), SO_PEERCRED). A request is one
line, such as {"request": "status"}, and so is its answer; several are answered in order. A client
that stalls costs one descriptor and is dropped after a while; nothing that it sends can stop the
master. Raises SuperdError if it cannot listen.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from superd.config.model import Service
from superd.errors import ExitCode, reason
from superd.listen.failures import CannotListen
from superd.listen.listener import Listener
from superd.listen.listeners import listen
from superd.net.addresses import Address, Transport
from superd.net.credentials import peer_ids

MAX_CLIENTS = 16
CLIENT_TIMEOUT = 5.0  # seconds that a client may take to send a request, or to read its answer
ANSWER_TIMEOUT = 3.0  # seconds until a pending answer is given with what is known by then
MAX_REQUEST_BYTES = 4096

_NOT_PERMITTED = int(ExitCode.NOT_PERMITTED)


class Later(Protocol):
    """An answer that is not known yet."""

    def begin(self, reply: Callable[[bytes], None]) -> None:
        """Call `reply` with the answer, once; this may happen before `begin` returns."""

    def reply_now(self) -> None:
        """Call `reply` with what is known."""


@dataclass(eq=False)
class Client:
    """A connection to the control socket. `since` is when its time for the next step began, and
    `is_last` means that it is dropped after the answer.
    """

    socket: socket.socket
    since: float
    received: bytes = b""
    unsent: memoryview | None = None
    later: Later | None = None
    is_last: bool = False


class ControlSocket:
    """Answers requests; `answer(line)` returns an answer, or a Later."""

    def __init__(
        self,
        listener: Listener,
        selector: selectors.BaseSelector,
        answer: Callable[[bytes], bytes | Later],
    ) -> None:
        self.selector = selector
        self.answer = answer
        self.listener = listener
        self.clients: set[Client] = set()
        self.is_accepting = False
        self.check()

    def check(self) -> None:
        """Drop clients that stall, and accept again after a failure; called regularly."""
        now = time.monotonic()
        for client in list(self.clients):
            if client.later is None and now - client.since > CLIENT_TIMEOUT:
                self._drop(client)
            elif client.later is not None and now - client.since > ANSWER_TIMEOUT:
                client.later.reply_now()
        if not self.is_accepting:
            self.is_accepting = True
            self.selector.register(self.listener.socket, selectors.EVENT_READ, self.accept)

    def accept(self) -> None:
        try:
            sock, _ = self.listener.socket.accept()
        except BlockingIOError:
            return
        except OSError:  # such as EMFILE: the pending connection would make the loop spin
            self.is_accepting = False
            self.selector.unregister(self.listener.socket)
            return
        sock.setblocking(False)
        if refusal := self._refusal(sock):
            with contextlib.suppress(OSError):
                sock.send(line_of(refusal))
            sock.close()
            return
        client = Client(sock, time.monotonic())
        self.clients.add(client)
        self._await_request(client)

    def _refusal(self, sock: socket.socket) -> dict[str, Any] | None:
        """Return the answer to a client that is refused, or None."""
        try:
            uid, _ = peer_ids(sock)
        except AttributeError:  # no peer credentials here; the socket's mode admits its owner only
            uid = os.geteuid()
        except OSError as error:
            text = f"cannot find out the client's user: {reason(error)}"
            return {"error": text, "code": _NOT_PERMITTED}
        if uid not in (0, os.geteuid()):
            text = f"user {uid} may not use this control socket; expected user {os.geteuid()} or 0"
            return {"error": text, "code": _NOT_PERMITTED}
        if len(self.clients) >= MAX_CLIENTS:
            return {"error": f"{MAX_CLIENTS} clients are connected already; try again"}
        return None

    def _await_request(self, client: Client) -> None:
        self._watch(client, selectors.EVENT_READ, self._receive)

    def _watch(self, client: Client, events: int, call: Callable[[Client], None]) -> None:
        self._unwatch(client)
        self.selector.register(client.socket, events, partial(call, client))

    def _unwatch(self, client: Client) -> None:
        if client.socket in self.selector.get_map():
            self.selector.unregister(client.socket)

    def _receive(self, client: Client) -> None:
        if client not in self.clients:
            return  # it was dropped in the same turn of the loop
        try:
            data = client.socket.recv(MAX_REQUEST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        client.received += data
        self._answer_next(client)

    def _answer_next(self, client: Client) -> None:
        """Answer the next request if it is complete. Nothing is read until it is answered."""
        line, end, rest = client.received.partition(b"\n")
        if len(line) > MAX_REQUEST_BYTES:
            client.is_last = True
            text = f"expected a request of at most {MAX_REQUEST_BYTES} bytes"
            self._reply(client, line_of({"error": text}))
        elif not end:
            self._await_request(client)
        else:
            client.received = rest
            client.since = time.monotonic()
            answer = self.answer(line)
            if isinstance(answer, bytes):
                self._reply(client, answer)
            else:
                self._unwatch(client)
                client.later = answer
                answer.begin(partial(self._reply, client))

    def _reply(self, client: Client, answer: bytes) -> None:
        if client not in self.clients:
            return  # it was dropped meanwhile
        client.later = None
        client.since = time.monotonic()
        client.unsent = memoryview(answer)
        self._watch(client, selectors.EVENT_WRITE, self._send)

    def _send(self, client: Client) -> None:
        """Send as much of the answer as the client's socket takes."""
        if client not in self.clients or client.unsent is None:
            return
        try:
            client.unsent = client.unsent[client.socket.send(client.unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        if not client.unsent and client.is_last:
            self._drop(client)
        elif not client.unsent:
            client.since = time.monotonic()
            self._answer_next(client)

    def _drop(self, client: Client) -> None:
        self._unwatch(client)
        self.clients.remove(client)
        with contextlib.suppress(OSError):  # it may have disconnected
            client.socket.shutdown(socket.SHUT_RDWR)  # a forked child may have the socket, too
        client.socket.close()

    def close(self) -> None:
        for client in list(self.clients):
            self._drop(client)
        if self.is_accepting:
            self.selector.unregister(self.listener.socket)
        self.listener.close()


def line_of(answer: object) -> bytes:
    """Return an answer in the form in which it is sent."""
    return json.dumps(answer).encode("ascii") + b"\n"


def control_listener(path: Path) -> Listener:
    """Listen on the control socket."""
    address = Address(Transport.UNIX, path=str(path), mode=0o600)
    entry = Service.model_construct(plugin="(control)", listen=(address,), backlog=MAX_CLIENTS)
    try:
        return listen({"control socket": entry})[0]
    except CannotListen as error:
        raise CannotListen(error.failures, [str(error).removeprefix("service.")]) from None
