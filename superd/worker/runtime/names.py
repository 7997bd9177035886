"""The worker's client of the resolver process: names of clients, and addresses of names.

Runs in the worker, on the loop; works in a jail, since the resolver's socket has an abstract name.
Never blocks and never raises: without an answer in time, nothing was found.

A request is a numeric host, to look up its name, or "=" and a name, to look up its addresses. The
answer has the request, the seconds that it is valid, and each name or address, separated by NUL.
"!" and a name says that an address of the name does not work; it has no answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Iterable

from superd.net.names import normalized_name
from superd.net.patterns import MAX_NAME_CHARACTERS

REQUEST_TIMEOUT = 6.0  # seconds
MAX_NAME_LIFETIME = 60.0  # seconds that a client's name is cached at most
MAX_CACHED = 1024  # answers
MAX_PENDING = 2000  # requests without an answer
TRUSTED_TIME = 5.0  # seconds in which a failure of an address causes no second look-up
ADDRESSES_PREFIX = "="
DISTRUST_PREFIX = "!"
MAX_REQUEST_SIZE = len(ADDRESSES_PREFIX) + MAX_NAME_CHARACTERS + 1  # bytes; a name may end in a dot
MAX_ANSWER_SIZE = 2048  # bytes

Found = tuple[str, ...]
OnFound = Callable[[Found], None]


def answer_to(request: str, found: Iterable[str], valid: float) -> bytes:
    """Return the resolver's answer to a request."""
    return "\0".join((request, f"{valid:.3f}", *found)).encode("ascii")


class Names:
    """Looks up names and addresses; `address` is the resolver's socket, "" for none."""

    def __init__(self, loop: asyncio.AbstractEventLoop, address: str) -> None:
        self._loop = loop
        self._address = address
        self._socket: socket.socket | None = None
        self._pending: dict[str, tuple[asyncio.TimerHandle, list[OnFound]]] = {}
        # what was found, the times when it expires, and when it was received
        self._cache: dict[str, tuple[Found, float, float]] = {}

    def __len__(self) -> int:
        """Return how many requests are pending."""
        return len(self._pending)

    def look_up_name(self, host: str, on_found: Callable[[str], None]) -> None:
        """Call `on_found(name)`, with "" if the numeric host has no confirmed name."""
        self._request(host.partition("%")[0], lambda found: on_found("".join(found[:1])))

    def look_up_addresses(self, name: str, on_found: OnFound) -> None:
        """Call `on_found` with the numeric addresses of a name, the preferred first; () for none.

        It is called at once for a cached answer and for a numeric host, which is its own address.
        """
        if _is_address(name):
            on_found((name,))
        elif asked := normalized_name(name):
            self._request(ADDRESSES_PREFIX + asked, on_found)
        else:
            on_found(())

    def distrust(self, name: str) -> None:
        """Note that an address of a name does not work: the next request is looked up again, though
        its time to live is not over. The resolver limits how often.
        """
        asked = ADDRESSES_PREFIX + normalized_name(name)
        _, _, since = self._cache.get(asked, ((), 0.0, 0.0))
        if since and self._loop.time() - since >= TRUSTED_TIME:
            del self._cache[asked]
            self._send(DISTRUST_PREFIX + normalized_name(name))

    def _request(self, request: str, on_found: OnFound) -> None:
        found, until, _ = self._cache.get(request, ((), 0.0, 0.0))
        if until > self._loop.time():
            on_found(found)
        elif request in self._pending:
            self._pending[request][1].append(on_found)
        elif len(self._pending) < MAX_PENDING and self._send(request):
            timer = self._loop.call_later(REQUEST_TIMEOUT, self._settle, request, ())
            self._pending[request] = (timer, [on_found])
        else:
            on_found(())

    def _send(self, request: str) -> bool:
        try:
            if self._socket is None:
                self._socket = self._connect()
                self._loop.add_reader(self._socket, self._on_readable)
            self._socket.send(request.encode("ascii"))
        except BlockingIOError:
            return False  # its queue is full of requests that the resolver has not read
        except (OSError, ValueError):
            self._disconnect()
            return False
        return True

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.setblocking(False)
            sock.connect(self._address)
        except OSError:
            sock.close()
            raise
        return sock

    def _on_readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(MAX_ANSWER_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            request, seconds, *texts = data.decode("ascii").split("\0")
            valid, found = float(seconds), tuple(texts)
        except ValueError:  # the resolver has ended, or the answer is invalid
            self._disconnect()
            return
        if not request.startswith(ADDRESSES_PREFIX):
            valid = min(valid, MAX_NAME_LIFETIME)
        while len(self._cache) >= MAX_CACHED:
            del self._cache[next(iter(self._cache))]
        now = self._loop.time()
        self._cache[request] = (found, now + valid, now)
        self._settle(request, found)

    def _settle(self, request: str, found: Found) -> None:
        if request in self._pending:
            timer, callbacks = self._pending.pop(request)
            timer.cancel()
            for on_found in callbacks:
                try:
                    on_found(found)
                except Exception as error:  # noqa: BLE001  the other callbacks have to run as well
                    context = {"message": "a callback for a name failed", "exception": error}
                    self._loop.call_exception_handler(context)

    def _disconnect(self) -> None:
        """Close the socket of a resolver that has ended; the next request connects to another."""
        sock, self._socket = self._socket, None
        if sock is not None:
            with contextlib.suppress(OSError):
                self._loop.remove_reader(sock)
            sock.close()
        for request in list(self._pending):
            self._settle(request, ())


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
