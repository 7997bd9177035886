"""Protocols that are recognised by a fixed beginning. No details are recorded. Pure."""

from __future__ import annotations

from collections.abc import Callable

from superd_sniffer.recognisers.reading import Details


def begins(*marks: bytes) -> Callable[[bytes], Details | None]:
    """Return a function that recognises data with one of these beginnings."""

    def recognise(data: bytes) -> Details | None:
        return {} if data.startswith(marks) else None

    return recognise


STREAMS = (
    ("jdwp", begins(b"JDWP-Handshake")),  # Java's debugger
    ("giop", begins(b"GIOP\x01\x00", b"GIOP\x01\x01", b"GIOP\x01\x02")),  # CORBA
    ("pjl", begins(b"\x1b%-12345X")),  # printers
    ("fox", begins(b"fox a ")),  # Niagara, building automation
    ("distcc", begins(b"DIST0000")),
    ("mqseries", begins(b"TSH \x00\x00")),
    ("nomachine", begins(b"NXSH-")),
    ("weblogic", begins(b"t3 1", b"t3 7", b"t3 8", b"t3 9", b"t3s 1")),
    ("gh0st", begins(b"Gh0st")),  # a trojan
    ("epmd", begins(b"\x00\x01n")),  # Erlang: a query for nodes
    ("radmin", begins(b"\x01\x00\x00\x00\x01\x00\x00\x00\x08\x08")),
)
