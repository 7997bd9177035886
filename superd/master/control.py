"""The control socket: `superd status` asks here, one line, and is answered with JSON.

Runs in the master; the asking half runs in the command line. The file is for the daemon's user
alone. A client that stalls costs one descriptor and is dropped after a while; nothing it sends can
stop the master.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from superd.config.model import Service
from superd.errors import SuperdError, reason
from superd.net.addresses import Address, Transport
from superd.net.listeners import Listener, listen

MOST_CLIENTS = 16
PATIENCE = 5.0  # seconds
LONGEST_REQUEST = 256


class ControlSocket:
    """Answers requests; `answer(request)` gives what is to be sent as JSON."""

    def __init__(
        self, path: Path, selector: selectors.BaseSelector, answer: Callable[[str], Any]
    ) -> None:
        self.selector = selector
        self.answer = answer
        self.listener = _listener(path)
        self.clients: dict[socket.socket, float] = {}
        selector.register(self.listener.socket, selectors.EVENT_READ, self.accept)

    def accept(self) -> None:
        for client, since in list(self.clients.items()):
            if time.monotonic() - since > PATIENCE:
                self._drop(client)
        try:
            client, _ = self.listener.socket.accept()
        except OSError:
            return
        if len(self.clients) >= MOST_CLIENTS:
            client.close()
            return
        client.setblocking(False)
        self.clients[client] = time.monotonic()
        self.selector.register(client, selectors.EVENT_READ, lambda: self._serve(client))

    def _serve(self, client: socket.socket) -> None:
        """Take the request, which comes in one piece, and answer as far as the socket takes it."""
        try:
            request = client.recv(LONGEST_REQUEST)
            if request:
                answer = json.dumps(self.answer(request.decode(errors="replace").strip()))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * len(answer))
                client.send(answer.encode())
        except OSError:
            pass
        self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        self.selector.unregister(client)
        del self.clients[client]
        client.close()

    def close(self) -> None:
        for client in list(self.clients):
            self._drop(client)
        self.selector.unregister(self.listener.socket)
        self.listener.close()


def _listener(path: Path) -> Listener:
    address = Address(Transport.UNIX, path=str(path), mode=0o600)
    entry = Service.model_construct(plugin="(control)", listen=(address,), backlog=MOST_CLIENTS)
    return listen({"(control socket)": entry})[0]


def ask(path: Path, request: str) -> Any:
    """Return the master's answer; SuperdError where there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(PATIENCE)
        try:
            client.connect(str(path))
            client.sendall(f"{request}\n".encode())
            parts = iter(lambda: client.recv(65536), b"")
            return json.loads(b"".join(parts))
        except (OSError, ValueError) as error:
            raise SuperdError(f"control socket {path}: {reason(error)}") from None
