"""The control socket: `superd status` and others ask here, and are answered, in lines of JSON.

Runs in the master; superd/cli/daemon.py is the client's end. Only the daemon's user and root are
heard, by the socket's mode and by what the kernel says of who has connected. A request is one line,
as {"request": "status"}, and so is its answer; several are answered in order. A client that stalls
costs one descriptor and is dropped after a while; nothing it sends can stop the master. Raises
SuperdError where it cannot listen.
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
from superd.errors import ExitCode, SuperdError, reason
from superd.listen.listener import Listener
from superd.listen.listeners import listen
from superd.net.addresses import Address, Transport
from superd.net.credentials import ids_of_peer

MOST_CLIENTS = 16
PATIENCE = 5.0  # seconds that a client may take to ask, or to take its answer
LONGEST_WAIT = 3.0  # seconds until an answer that is to come is given as far as it is known
LONGEST_REQUEST = 4096

_NOT_PERMITTED = int(ExitCode.NOT_PERMITTED)


class Later(Protocol):
    """An answer that is still to come."""

    def begin(self, reply: Callable[[bytes], None]) -> None:
        """Have `reply` called with the answer, once, and perhaps at once."""

    def give_up(self) -> None:
        """Reply now, with what is known."""


@dataclass(eq=False)
class Client:
    """Who asks, since when it is its turn, and what of its requests and answers is under way."""

    socket: socket.socket
    since: float
    received: bytes = b""
    unsent: memoryview | None = None
    later: Later | None = None
    is_last: bool = False  # the answer: it is dropped then


class ControlSocket:
    """Answers requests; `answer(line)` gives what is to be sent, at once or later."""

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
        self.look()

    def look(self) -> None:
        """Drop those who stall, and accept again after a failure; called a few times a second."""
        now = time.monotonic()
        for client in list(self.clients):
            if client.later is None and now - client.since > PATIENCE:
                self._drop(client)
            elif client.later is not None and now - client.since > LONGEST_WAIT:
                client.later.give_up()
        if not self.is_accepting:
            self.is_accepting = True
            self.selector.register(self.listener.socket, selectors.EVENT_READ, self.accept)

    def accept(self) -> None:
        try:
            sock, _ = self.listener.socket.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptor is free: whoever waits would make the loop spin
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
        """Return what to tell somebody who is not heard."""
        try:
            uid, _ = ids_of_peer(sock)
        except AttributeError:  # this system does not tell; the file is its owner's alone
            uid = os.geteuid()
        except OSError as error:
            return {"error": f"cannot tell who asks: {reason(error)}", "code": _NOT_PERMITTED}
        if uid not in (0, os.geteuid()):
            text = f"user {uid} may not ask, only user {os.geteuid()}, whose daemon this is"
            return {"error": text, "code": _NOT_PERMITTED}
        if len(self.clients) >= MOST_CLIENTS:
            return {"error": f"{MOST_CLIENTS} others are asking already; try again"}
        return None

    def _await_request(self, client: Client) -> None:
        self._watch(client, selectors.EVENT_READ, self._receive)

    def _watch(self, client: Client, events: int, call: Callable[[Client], None]) -> None:
        self._leave_alone(client)
        self.selector.register(client.socket, events, partial(call, client))

    def _leave_alone(self, client: Client) -> None:
        if client.socket in self.selector.get_map():
            self.selector.unregister(client.socket)

    def _receive(self, client: Client) -> None:
        if client not in self.clients:
            return  # it was dropped in the same turn of the loop
        try:
            data = client.socket.recv(LONGEST_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        client.received += data
        self._take_up(client)

    def _take_up(self, client: Client) -> None:
        """Answer the next request, if it is there. While it is answered nothing more is read."""
        line, end, rest = client.received.partition(b"\n")
        if len(line) > LONGEST_REQUEST:
            client.is_last = True
            text = f"a request has at most {LONGEST_REQUEST} bytes"
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
                self._leave_alone(client)
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
        """Send as much of the answer as the client takes."""
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
            self._take_up(client)

    def _drop(self, client: Client) -> None:
        self._leave_alone(client)
        self.clients.remove(client)
        with contextlib.suppress(OSError):  # it may have gone
            client.socket.shutdown(socket.SHUT_RDWR)  # a child of ours may have the socket, too
        client.socket.close()

    def close(self) -> None:
        for client in list(self.clients):
            self._drop(client)
        if self.is_accepting:
            self.selector.unregister(self.listener.socket)
        self.listener.close()


def line_of(answer: object) -> bytes:
    """Return an answer as it is sent."""
    return json.dumps(answer).encode("ascii") + b"\n"


def control_listener(path: Path) -> Listener:
    """Listen on the control socket."""
    address = Address(Transport.UNIX, path=str(path), mode=0o600)
    entry = Service.model_construct(plugin="(control)", listen=(address,), backlog=MOST_CLIENTS)
    try:
        return listen({"control socket": entry})[0]
    except SuperdError as error:
        raise type(error)(str(error).removeprefix("service.")) from None
