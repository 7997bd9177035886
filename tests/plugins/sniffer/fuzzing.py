"""A program that searches with libFuzzer for bytes that break a recogniser; test_fuzzing runs it.

Takes libFuzzer's options. Ends with an exception and the bytes if it finds any.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

atheris: Any = import_module("atheris")

with atheris.instrument_imports(include=["superd_sniffer"]):
    from superd_sniffer.pcap import packet_of_datagram, packets_of_stream
    from superd_sniffer.recognisers.guess import guess
    from superd_sniffer.recognisers.tls import client_hello, datagram_hello, ja4

ENDS = ("192.0.2.1", 1), ("2001:db8::1", 2)


def one_input(data: bytes) -> None:
    for datagram in (False, True):
        found = guess(data, datagram=datagram)
        assert found is None or all(0 < len(one) <= 256 for one in found.details.values())
    for hello in (client_hello(data), datagram_hello(data)):
        assert hello is None or len(ja4(hello)) == 36
    packets_of_stream(*ENDS, data, at=0)
    packet_of_datagram(*ENDS, data, at=0)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
