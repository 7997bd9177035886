"""Names, as a worker asks the resolver: clients' names, and the addresses of those named.

Runs in the worker, on the loop; works in a jail, since the resolver's socket has an abstract name.
Never blocks and never raises: where the resolver does not answer in time, there is none.

A request is a numeric host, whose name is wanted, or "=" and a name, whose addresses are. The
answer repeats it, and says after NUL each for how many seconds it is valid, and what was found.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Iterable

from superd.net.names import normalized_name
from superd.net.patterns import MAX_NAME_CHARACTERS

PATIENCE = 6.0  # seconds
VALID = 60.0  # seconds that a client's name is remembered at most
MOST_KNOWN = 1024
MOST_WAITING = 2000  # requests that are not answered yet
ADDRESSES_OF = "="
LONGEST_REQUEST = len(ADDRESSES_OF) + MAX_NAME_CHARACTERS + 1  # bytes; a name may end in a dot
LONGEST_ANSWER = 2048

Found = tuple[str, ...]
Answered = Callable[[Found], None]


def answer_to(request: str, found: Iterable[str], valid: float) -> bytes:
    """Return the resolver's answer to a request."""
    return "\0".join((request, f"{valid:.3f}", *found)).encode("ascii")


class Names:
    """Asks for names; `address` is the resolver's socket, "" where there is none."""

    def __init__(self, loop: asyncio.AbstractEventLoop, address: str) -> None:
        self._loop = loop
        self._address = address
        self._line: socket.socket | None = None
        self._waiting: dict[str, tuple[asyncio.TimerHandle, list[Answered]]] = {}
        self._known: dict[str, tuple[Found, float]] = {}

    def __len__(self) -> int:
        """Return how many requests are under way."""
        return len(self._waiting)

    def ask(self, host: str, answered: Callable[[str], None]) -> None:
        """Have `answered(name)` called; "" where a numeric host has no confirmed name."""
        self._request(host.partition("%")[0], lambda found: answered("".join(found[:1])))

    def addresses(self, name: str, answered: Answered) -> None:
        """Have `answered` called with a name's numeric addresses, the best first; () for none.

        What is remembered within its TTL, or needs no look-up, is answered at once. A numeric host
        is its own address.
        """
        if _is_address(name):
            answered((name,))
        elif asked := normalized_name(name):
            self._request(ADDRESSES_OF + asked, answered)
        else:
            answered(())

    def _request(self, request: str, answered: Answered) -> None:
        found, until = self._known.get(request, ((), 0.0))
        if until > self._loop.time():
            answered(found)
        elif request in self._waiting:
            self._waiting[request][1].append(answered)
        elif len(self._waiting) < MOST_WAITING and self._send(request):
            timer = self._loop.call_later(PATIENCE, self._settle, request, ())
            self._waiting[request] = (timer, [answered])
        else:
            answered(())

    def _send(self, request: str) -> bool:
        try:
            if self._line is None:
                self._line = self._connected()
                self._loop.add_reader(self._line, self._heard)
            self._line.send(request.encode("ascii"))
        except BlockingIOError:
            return False  # it is full of requests, whose answers are still to come
        except (OSError, ValueError):
            self._hang_up()
            return False
        return True

    def _connected(self) -> socket.socket:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            line.setblocking(False)
            line.connect(self._address)
        except OSError:
            line.close()
            raise
        return line

    def _heard(self) -> None:
        assert self._line is not None
        try:
            data = self._line.recv(LONGEST_ANSWER)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            request, seconds, *texts = data.decode("ascii").split("\0")
            valid, found = float(seconds), tuple(texts)
        except ValueError:  # it has gone, or says what no resolver would
            self._hang_up()
            return
        if not request.startswith(ADDRESSES_OF):
            valid = min(valid, VALID)
        while len(self._known) >= MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[request] = (found, self._loop.time() + valid)
        self._settle(request, found)

    def _settle(self, request: str, found: Found) -> None:
        if request in self._waiting:
            timer, callbacks = self._waiting.pop(request)
            timer.cancel()
            for answered in callbacks:
                try:
                    answered(found)
                except Exception as error:  # noqa: BLE001  the others' turn comes all the same
                    told = {"message": "who asked for a name failed", "exception": error}
                    self._loop.call_exception_handler(told)

    def _hang_up(self) -> None:
        """The resolver has gone; the next who asks finds its successor."""
        line, self._line = self._line, None
        if line is not None:
            with contextlib.suppress(OSError):
                self._loop.remove_reader(line)
            line.close()
        for request in list(self._waiting):
            self._settle(request, ())


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
