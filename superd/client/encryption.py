"""TLS for the two-way client: trust, the handshake, and a stream that does not block.

Runs in the command line. Never treats the end of the connection as the end of the data: without
close_notify it may be truncated (RFC 8446, 6.1). Raises UsageError, SuperdError.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl

from superd.client.reaching import Deadline
from superd.errors import SuperdError, UsageError, reason

RECEIVE_SIZE = 64 * 1024  # bytes
TRUNCATED = "the data may be truncated"


class Trust:
    """The expected name of the peer and the CAs that may certify it; UsageError."""

    def __init__(self, server_name: str, authorities: str | None, *, insecure: bool) -> None:
        self.server_name = server_name or None
        try:
            self.context = ssl.create_default_context(cafile=authorities)
        except (OSError, ssl.SSLError) as error:
            why = (
                "the file has no certificate" if isinstance(error, ssl.SSLError) else reason(error)
            )
            raise UsageError(f"--ca {authorities}: {why}") from None
        # Python 3.11.2 and OpenSSL 3 ignore it by default; then a truncation would go unnoticed
        self.context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        if insecure:
            self.context.check_hostname = False
            self.context.verify_mode = ssl.CERT_NONE
        elif not server_name:
            raise UsageError("--tls needs --server-name or --insecure, as the address has no host")


def encrypted(connection: socket.socket, name: str, trust: Trust, deadline: Deadline) -> Encrypted:
    """Make the handshake and return the stream; the caller closes the connection."""
    stream = Encrypted(connection, name, trust)
    try:
        stream.shake_hands(deadline)
    except ssl.SSLCertVerificationError as error:
        raise SuperdError(
            f"the certificate of {name} is not trusted: {error.verify_message.rstrip('.')}"
            " (--ca FILE trusts another authority, --insecure any certificate)"
        ) from None
    except TimeoutError:
        raise SuperdError(f"no TLS handshake with {name} in {deadline}") from None
    except OSError as error:
        raise SuperdError(f"no TLS handshake with {name}: {_why(error)}") from None
    return stream


def _is_unexpected_end(error: OSError) -> bool:
    """Return whether the peer ended the connection without close_notify; 3.11.2 has no class."""
    if isinstance(error, ssl.SSLError):
        is_end = isinstance(error, ssl.SSLEOFError)
        return is_end or error.reason == "UNEXPECTED_EOF_WHILE_READING"
    return isinstance(error, (ConnectionResetError, BrokenPipeError))


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError) and _is_unexpected_end(error):
        return "the peer closed the connection"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return reason(error)


class Encrypted:
    """A TLS connection that moves the bytes between socket and OpenSSL itself.

    With a socket OpenSSL could not close one direction only: SSL_shutdown(3) reads the peer's
    close_notify, and fails if it finds data instead. Here it finds an empty buffer.
    """

    def __init__(self, connection: socket.socket, name: str, trust: Trust) -> None:
        self.socket = connection
        self.name = name
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trust.context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=trust.server_name
        )
        self._room = memoryview(bytearray(RECEIVE_SIZE))
        self._unsent = memoryview(b"")
        self._early = bytearray()  # decrypted before this side ended; received first
        self.has_more = False
        self._has_sent_close = False
        self._has_ended = False  # by the peer's close_notify
        self._failure: SuperdError | None = None  # raised once the data before it is received

    def shake_hands(self, deadline: Deadline) -> None:
        """Make the TLS handshake; OSError, TimeoutError."""
        while True:
            self.socket.settimeout(deadline.left_to_wait)
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.socket.sendall(self._outgoing.read())
                self._take()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self.socket.sendall(self._outgoing.read())  # the alert says why
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
            with contextlib.suppress(OSError):  # `receive` raises the error, too
                self._flush()
        return events

    def receive(self, room: memoryview) -> int:
        """Receive as much as is there and fits."""
        size = min(len(room), len(self._early))
        room[:size] = self._early[:size]
        del self._early[:size]
        self.has_more = False
        try:
            if self._failure is not None:
                raise self._failure
            while size < len(room) and not self._has_ended:
                try:
                    got = self._tls.read(len(room) - size, room[size:])
                    self._has_ended = not got
                    size += got  # type: ignore[operator]
                except ssl.SSLWantReadError:
                    self._take()
                except ssl.SSLZeroReturnError:  # the peer's close_notify after this side's own
                    self._has_ended = True
            self._flush()  # TLS may have to answer by itself
        except BlockingIOError:
            if not size:
                raise
        except OSError as error:
            if _is_unexpected_end(error):
                text = f"{self.name} closed the connection without close_notify: {TRUNCATED}"
            else:
                text = f"TLS with {self.name} failed: {_why(error)}"
            self._fail(text, size)
        # more may be buffered here, where poll(2) does not see it
        self.has_more = size == len(room) or bool(size and (self._has_ended or self._failure))
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
            size = self._tls.write(data[:RECEIVE_SIZE])
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
        """Send close_notify; data of the peer is received as before."""
        if not self._has_sent_close and not self._incoming.eof:
            self._has_sent_close = True
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
        """Send close_notify if the socket takes it without waiting."""
        with contextlib.suppress(OSError):
            self.end()
