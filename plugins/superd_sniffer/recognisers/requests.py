"""Protocols whose messages begin with a request line and headers: HTTP, RTSP, SIP, SSDP; and XMPP.
Pure; raises nothing but `Unreadable`.
"""

from __future__ import annotations

from typing import NamedTuple

from superd_sniffer.recognisers.reading import Details, text

_PREFACE = b"PRI * HTTP/2.0\r\n"
_MAX_HEADERS = 100

# methods of HTTP alone: they are recognised without a version
_OF_HTTP = frozenset(
    b"GET HEAD POST PUT DELETE PATCH TRACE TRACK PROPFIND PROPPATCH MKCOL COPY MOVE LOCK UNLOCK "
    b"REPORT DEBUG".split()
)
_OF_SIP = frozenset(
    b"ACK BYE CANCEL INFO INVITE MESSAGE NOTIFY OPTIONS PRACK PUBLISH REFER REGISTER SUBSCRIBE "
    b"UPDATE".split()
)
_METHOD = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ-_")


class _Request(NamedTuple):
    method: bytes
    target: bytes
    version: bytes
    is_whole: bool  # the line has ended


def _request(data: bytes) -> _Request | None:
    """Read a request line; RFC 9112 (2.2) lets empty lines precede it."""
    if data[:1] in (b"\r", b"\n"):
        data = data[:8].lstrip(b"\r\n") + data[8:]
    method, space, _ = data[:32].partition(b" ")
    if not space or not 3 <= len(method) <= 20 or not _METHOD.issuperset(method):
        return None
    line, end, _ = data[len(method) + 1 :].partition(b"\n")
    target, _, version = line.rstrip(b"\r").partition(b" ")
    return _Request(method, target, version.strip(b" "), bool(end)) if target else None


def _headers(data: bytes, *wanted: str) -> Details:
    """Return the wanted headers, the first of each name, from complete lines."""
    found: Details = {}
    for line in data.lstrip(b"\r\n").split(b"\n", _MAX_HEADERS + 1)[1:-1]:
        name, colon, value = line.partition(b":")
        if not colon:
            break  # the empty line, or not a header
        key = text(name).lower()
        if key in wanted:
            found.setdefault(key, text(value.strip()))
    return found


def _details(data: bytes, request: _Request, *wanted: str) -> Details:
    return {
        "method": text(request.method),
        "target": text(request.target),
        "version": text(request.version).rpartition("/")[2],
        **_headers(data, *wanted),
    }


def http2(data: bytes) -> Details | None:
    """RFC 9113, 3.4."""
    return {} if data.startswith(_PREFACE) else None


def http(data: bytes) -> Details | None:
    """RFC 9112; without a version it is HTTP/0.9 (RFC 1945), or a line that is cut off."""
    request = _request(data)
    if request is None or request.method == b"PRI":
        return None
    is_http = request.method in _OF_HTTP and request.target.startswith((b"/", b"http:", b"https:"))
    if not is_http and not request.version.startswith(b"HTTP/"):
        return None
    if not request.version and request.is_whole:
        request = request._replace(version=b"0.9")
    elif not request.is_whole:
        request = request._replace(version=b"")  # it may continue
    return _details(data, request, "host", "user-agent")


def rtsp(data: bytes) -> Details | None:
    """RFC 2326 and RFC 7826."""
    request = _request(data)
    if request is None or request.method in _OF_HTTP:
        return None
    has_rtsp_target = request.target.startswith((b"rtsp:", b"rtsps:", b"rtspu:"))
    if not has_rtsp_target and not request.version.startswith(b"RTSP/"):
        return None
    return _details(data, request, "cseq", "user-agent")


def sip(data: bytes) -> Details | None:
    """RFC 3261."""
    request = _request(data)
    if request is None or request.method in _OF_HTTP:
        return None
    has_sip_target = request.target.startswith((b"sip:", b"sips:", b"tel:"))
    if not (has_sip_target and request.method in _OF_SIP) and not request.version.startswith(
        b"SIP/"
    ):
        return None
    return _details(data, request, "user-agent", "from", "to")


def ssdp(data: bytes) -> Details | None:
    """UPnP Device Architecture 2.0, 1.2 and 1.3."""
    request = _request(data)
    if request is None or request.method not in (b"M-SEARCH", b"NOTIFY"):
        return None
    if request.target != b"*" or not request.version.startswith(b"HTTP/"):
        return None
    return {"method": text(request.method), **_headers(data, "st", "nt", "user-agent")}


def xmpp(data: bytes) -> Details | None:
    """RFC 6120, 4.2."""
    start = data[:1024]
    if not start.startswith((b"<?xml", b"<stream:stream")):
        return None
    _, found, attributes = start.partition(b"<stream:stream")
    if not found:
        return None
    for quote in (b"'", b'"'):
        _, found, value = attributes.partition(b" to=" + quote)
        name, closed, _ = value.partition(quote)
        if found and closed:
            return {"to": text(name)}
    return {}
