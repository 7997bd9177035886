"""The control socket: `superd status` and others ask here, one line, and are answered with JSON.

Runs in the master; the asking half runs in the command line. The file is for the daemon's user
alone. A client that stalls costs one descriptor and is dropped after a while; nothing it sends can
stop the master. Raises SuperdError where it cannot listen, or where nobody answers.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from superd.config.model import Service
from superd.errors import NotPermitted, SuperdError, reason
from superd.net.addresses import Address, Transport
from superd.net.listeners import Listener, listen

MOST_CLIENTS = 16
PATIENCE = 5.0  # seconds
LONGEST_REQUEST = 4096


@dataclass(eq=False)
class Client:
    """Who asks, since when, and what of the answer is still to be sent."""

    socket: socket.socket
    since: float
    unsent: bytes = b""


class ControlSocket:
    """Answers requests; `answer(request)` gives what is to be sent as JSON."""

    def __init__(
        self, listener: Listener, selector: selectors.BaseSelector, answer: Callable[[str], Any]
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
        for client in [one for one in self.clients if now - one.since > PATIENCE]:
            self._drop(client)
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
        if len(self.clients) >= MOST_CLIENTS:
            sock.close()
            return
        sock.setblocking(False)
        client = Client(sock, time.monotonic())
        self.clients.add(client)
        self.selector.register(sock, selectors.EVENT_READ, partial(self._asked, client))

    def _asked(self, client: Client) -> None:
        """Take the request, which comes in one piece."""
        if client not in self.clients:
            return  # it was dropped in the same turn of the loop
        try:
            request = client.socket.recv(LONGEST_REQUEST)
        except OSError:
            request = b""
        if request:
            answer = self.answer(request.decode(errors="replace").strip())
            client.unsent = json.dumps(answer).encode()
            self.selector.modify(client.socket, selectors.EVENT_WRITE, partial(self._send, client))
        else:
            self._drop(client)

    def _send(self, client: Client) -> None:
        """Send as much of the answer as the client takes."""
        if client not in self.clients:
            return
        try:
            client.unsent = client.unsent[client.socket.send(client.unsent) :]
        except BlockingIOError:
            return
        except OSError:
            client.unsent = b""
        if not client.unsent:
            self._drop(client)

    def _drop(self, client: Client) -> None:
        self.selector.unregister(client.socket)
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


def control_listener(path: Path) -> Listener:
    """Listen on the control socket."""
    address = Address(Transport.UNIX, path=str(path), mode=0o600)
    entry = Service.model_construct(plugin="(control)", listen=(address,), backlog=MOST_CLIENTS)
    try:
        return listen({"control socket": entry})[0]
    except SuperdError as error:
        raise type(error)(str(error).removeprefix("service.")) from None


def ask(path: Path, request: str) -> Any:
    """Return the master's answer; SuperdError where there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(PATIENCE)
        try:
            client.connect(str(path))
            client.sendall(f"{request}\n".encode())
            parts = iter(lambda: client.recv(65536), b"")
            return json.loads(b"".join(parts))
        except PermissionError:
            raise NotPermitted(f"control socket {path}: it belongs to another user") from None
        except (OSError, ValueError) as error:
            raise SuperdError(f"control socket {path}: {reason(error)}") from None
