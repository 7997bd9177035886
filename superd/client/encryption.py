"""TLS for the two-way client: whom to trust, the handshake, and a stream that does not block.

Runs in the command line. Never takes the end of a connection for the end of what was said: without
close_notify it may be cut short (RFC 8446, 6.1). Raises UsageError, SuperdError.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl

from superd.client.reaching import Deadline
from superd.errors import SuperdError, UsageError, reason

ROOM = 64 * 1024  # bytes that are moved at once
CUT = "what came may be cut short"


class Trust:
    """Whom the other side has to be, and who may vouch for it; UsageError."""

    def __init__(self, server_name: str, authorities: str | None, *, insecure: bool) -> None:
        self.server_name = server_name or None
        try:
            self.context = ssl.create_default_context(cafile=authorities)
        except (OSError, ssl.SSLError) as error:
            why = "it holds no certificate" if isinstance(error, ssl.SSLError) else reason(error)
            raise UsageError(f"--ca {authorities}: {why}") from None
        if insecure:
            self.context.check_hostname = False
            self.context.verify_mode = ssl.CERT_NONE
        elif not server_name:
            raise UsageError("--tls needs --server-name here, or --insecure: there is no host")


def encrypted(connection: socket.socket, name: str, trust: Trust, deadline: Deadline) -> Encrypted:
    """Make the handshake and return the stream; the connection stays the caller's."""
    stream = Encrypted(connection, name, trust)
    try:
        stream.shake_hands(deadline)
    except ssl.SSLCertVerificationError as error:
        raise SuperdError(
            f"the certificate of {name} is not to be trusted: {error.verify_message.rstrip('.')}"
            " (--ca FILE trusts another authority, --insecure whoever answers)"
        ) from None
    except TimeoutError:
        raise SuperdError(f"no TLS with {name} in {deadline}") from None
    except OSError as error:
        raise SuperdError(f"no TLS with {name}: {_why(error)}") from None
    return stream


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLEOFError):
        return "it closed the connection"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return reason(error)


class Encrypted:
    """A TLS connection whose bytes are moved here, and not by OpenSSL.

    It could not end one direction alone: SSL_shutdown(3) looks for the other side's close_notify,
    and data that it finds instead break the connection. Here it finds nothing.
    """

    def __init__(self, connection: socket.socket, name: str, trust: Trust) -> None:
        self.socket = connection
        self.name = name
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trust.context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=trust.server_name
        )
        self._room = memoryview(bytearray(ROOM))
        self._unsent = memoryview(b"")
        self._early = bytearray()  # received, and to be taken before anything else
        self.has_more = False
        self._said_goodbye = False
        self._ended = False  # by close_notify of the other side
        self._failure: SuperdError | None = None  # to be told after what came before it

    def shake_hands(self, deadline: Deadline) -> None:
        """Agree with the other side; OSError, TimeoutError."""
        while True:
            self.socket.settimeout(deadline.left_to_wait)
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.socket.sendall(self._outgoing.read())
                self._take()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self.socket.sendall(self._outgoing.read())  # why
                raise
            else:
                self.socket.sendall(self._outgoing.read())
                self.socket.setblocking(False)
                return

    def _take(self) -> None:
        size = self.socket.recv_into(self._room)
        if size:
            self._incoming.write(self._room[:size])
        else:
            self._incoming.write_eof()

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def events(self, wanted: int) -> int:
        return wanted | select.POLLOUT if self._unsent else wanted

    def ready(self, events: int) -> int:
        if events & select.POLLOUT:
            with contextlib.suppress(OSError):  # whoever receives is told
                self._flush()
        return events

    def receive(self, room: memoryview) -> int:
        """Receive as much as there is and fits."""
        size = min(len(room), len(self._early))
        room[:size] = self._early[:size]
        del self._early[:size]
        self.has_more = False
        try:
            if self._failure is not None:
                raise self._failure
            while size < len(room) and not self._ended:
                try:
                    got = self._tls.read(len(room) - size, room[size:])
                    self._ended = not got
                    size += got  # type: ignore[operator]
                except ssl.SSLWantReadError:
                    self._take()
                except ssl.SSLZeroReturnError:  # close_notify, after this side's own
                    self._ended = True
            self._flush()  # TLS itself may have something to answer
        except BlockingIOError:
            if not size:
                raise
        except (ssl.SSLEOFError, ConnectionResetError, BrokenPipeError):
            self._fail(f"{self.name} ended the connection without ending TLS: {CUT}", size)
        except OSError as error:
            self._fail(f"TLS with {self.name} failed: {_why(error)}", size)
        # what is left may be here already, where poll(2) does not see it
        self.has_more = size == len(room) or bool(size and (self._ended or self._failure))
        return size

    def _fail(self, text: str, size: int) -> None:
        self._failure = SuperdError(text)
        if not size:
            raise self._failure from None

    def send(self, data: memoryview) -> int:
        self._flush()
        if self._unsent:
            raise BlockingIOError
        try:
            size = self._tls.write(data[:ROOM])
        except ssl.SSLError as error:
            raise SuperdError(_why(error)) from None
        self._flush()
        return size

    def _flush(self) -> None:
        while self._unsent or self._outgoing.pending:
            if not self._unsent:
                self._unsent = memoryview(self._outgoing.read())
            try:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
            except BlockingIOError:
                return
            except OSError:
                self._unsent = memoryview(b"")
                raise

    def end(self) -> None:
        """Send close_notify; what the other side still says is received as before."""
        if not self._said_goodbye and not self._incoming.eof:
            self._said_goodbye = True
            while size := self._tls.pending():
                self._early += self._tls.read(size)
            rest = self._incoming.read()
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._incoming.write(rest)
            self.has_more = bool(self._early or rest)
        self._flush()
        if self._unsent:
            raise BlockingIOError

    def close(self) -> None:
        """Take leave as TLS has it, if there is room for it."""
        with contextlib.suppress(OSError):
            self.end()
