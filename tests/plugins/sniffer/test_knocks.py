"""Knocks on every kind of address: the lines of the file `output`, and the records."""

from __future__ import annotations

import base64
import select
import socket
import struct
import time

import pytest
from superd_sniffer.ports import port_names

from tests.conftest import Start
from tests.plugins.sniffer.knocking import Knocks, events, knock, lines, send_udp, talk, texts
from tests.support.clients import (
    connect_unix,
    is_open,
    receive_and_close,
    receive_to_end,
    reset,
    send_until_blocked,
)
from tests.support.harness import EVENT_TIMEOUT, Address, Superd, until
from tests.support.ports import own_host

SERVICE = """
[service.{name}]
plugin = "sniffer"
listen = [{listen}]
[service.{name}.options]
output = "{{directory}}/{name}.out"
{options}
"""
QUICK = (
    '"tcp://127.0.0.1:0", "udp://127.0.0.1:0", "tcp://[::1]:0", "udp://[::1]:0",'
    ' "unix://{directory}/stream", "unixgram://{directory}/grams", "unixpacket://{directory}/seq"'
)
ONE = '"tcp://127.0.0.1:0"'


def service(name: str, options: str = "", listen: str = ONE) -> str:
    text = SERVICE.format(name=name, listen=listen, options=options)
    return text.replace("{{", "{").replace("}}", "}")


TOML = (
    "[daemon]\nworkers = 1\n"
    + service("quick", listen=QUICK)
    + service("capture", "capture = {}", QUICK.replace("directory}/", "directory}/capture-"))
    + service("everywhere", listen='"tcp://*:0", "udp://*:0"')
    + service("bytes", 'capture = { bytes = 10, time = "1m" }')
    + service("moment", 'capture = { time = "300ms" }')
    + service("banner", 'banner = "220 h\\u00e9llo\\r\\n"\ncapture = { bytes = 3 }')
    + service("tarpit", 'tarpit = "1s"\ncapture = { bytes = 3, time = "1m" }')
    + service("sticky", 'tarpit = "1s"')
)


@pytest.fixture
def quick(served: Superd) -> Knocks:
    return Knocks(served, "quick")


@pytest.fixture
def capturing(served: Superd) -> Knocks:
    return Knocks(served, "capture")


def test_a_connection_is_recorded_and_closed(served: Superd, quick: Knocks) -> None:
    before = time.time()
    with served.connect("quick") as client:
        assert client.recv(10) == b""
        host, port = client.getsockname()
    (line,) = quick.next()
    assert before - 0.001 <= line.pop("time") <= time.time()
    assert line == {
        "service": "quick",
        "transport": "tcp",
        "peer": f"{host}:{port}",
        "name": "",
        "local": f"127.0.0.1:{served.address('quick')[1]}",
        "port": served.address("quick")[1],
        "port-name": "",
        "protocol": "",
        "details": {},
        "bytes": 0,
        "text": "",
        "base64": "",
    }


def test_ipv6_addresses_have_brackets(served: Superd, capturing: Knocks) -> None:
    host, port = served.addresses("capture")[1]
    with socket.create_connection((host, port), EVENT_TIMEOUT) as client:
        talk(client, b"x")
        here = client.getsockname()[1]
    (line,) = capturing.next()
    assert (line["peer"], line["local"]) == (f"[::1]:{here}", f"[::1]:{port}")


def test_a_datagram_is_never_answered(served: Superd, capturing: Knocks) -> None:
    query = struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0) + b"\7version\4bind\0\0\x10\0\3"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(served.address("capture", "udp"))
        client.send(query)
        peer = "{}:{}".format(*client.getsockname())
        (line,) = capturing.next()
        assert not select.select([client], [], [], 0)[0]
    assert (line["transport"], line["peer"]) == ("udp", peer)
    assert base64.b64decode(line["base64"]) == query
    assert line["protocol"] == "dns"


@pytest.mark.parametrize("size", [0, 1, 1472, 4096, 4097, 65507])
def test_a_datagram_is_recorded_up_to_the_limit_of_the_capture(
    served: Superd, capturing: Knocks, size: int
) -> None:
    data = bytes(number % 251 for number in range(size))
    send_udp(served.address("capture", "udp"), data)
    (line,) = capturing.next()
    assert base64.b64decode(line["base64"]) == data[:4096]
    assert line["bytes"] == min(size, 4096)


def test_without_capture_the_data_of_a_datagram_is_not_recorded(
    served: Superd, quick: Knocks
) -> None:
    send_udp(served.address("quick", "udp"), b"secret")
    (line,) = quick.next()
    assert (line["bytes"], line["base64"], line["text"]) == (0, "", "")


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_unix_sockets_are_recorded(served: Superd, capturing: Knocks, kind: int) -> None:
    names = {socket.SOCK_STREAM: "stream", socket.SOCK_SEQPACKET: "seq", socket.SOCK_DGRAM: "grams"}
    path = served.directory / f"capture-{names[socket.SocketKind(kind)]}"
    with connect_unix(path, kind) as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        if kind != socket.SOCK_DGRAM:
            client.shutdown(socket.SHUT_WR)
        (line,) = capturing.next()
    assert line["local"] == str(path)
    assert line["text"].startswith("GET /")
    assert (line["port"], line["port-name"]) == (0, "")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1"])
def test_the_reached_address_is_recorded(served: Superd, host: str) -> None:
    knocks = Knocks(served, "everywhere")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    at = f"[{host}]" if ":" in host else host
    for transport in ("tcp", "udp"):
        found = served.addresses("everywhere", transport)
        port = next(port for wildcard, port in found if (":" in wildcard) == (":" in host))
        kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
        with socket.socket(family, kind) as client:
            client.connect((host, port))
            client.send(b"x")
            (line,) = knocks.next()
        assert (line["transport"], line["local"]) == (transport, f"{at}:{port}")


def test_captured_data_is_recorded_byte_for_byte(served: Superd, capturing: Knocks) -> None:
    data = bytes(range(256)) * 8
    assert knock(served.address("capture"), data) == b""
    (line,) = capturing.next()
    assert base64.b64decode(line["base64"]) == data
    assert line["text"].encode("latin-1") == data
    assert line["bytes"] == len(data)


def test_capture_ends_at_its_limit_of_bytes(served: Superd) -> None:
    knocks = Knocks(served, "bytes")
    with served.connect("bytes") as client:
        client.sendall(b"01234")
        client.sendall(b"56789abcdef")
        assert client.recv(1) == b""  # or a reset, as unread data was left
    assert [line["text"] for line in knocks.next()] == ["0123456789"]


def test_capture_ends_at_its_limit_of_time(served: Superd) -> None:
    knocks = Knocks(served, "moment")
    with served.connect("moment") as client:
        start = time.monotonic()
        client.sendall(b"half a li")
        assert client.recv(1) == b""
        assert 0.25 <= time.monotonic() - start < 5
    assert [line["text"] for line in knocks.next()] == ["half a li"]


def test_a_silent_client_is_recorded_at_the_end_of_the_capture(served: Superd) -> None:
    knocks = Knocks(served, "moment")
    with served.connect("moment") as client:
        assert client.recv(1) == b""
    assert [line["bytes"] for line in knocks.next()] == [0]


def test_a_client_that_closes_or_resets_immediately_is_recorded_once(
    served: Superd, capturing: Knocks
) -> None:
    served.connect("capture").close()
    reset(served.connect("capture"))
    assert [line["bytes"] for line in capturing.next(2)] == [0, 0]
    served.wait_until_idle("capture")
    send_udp(served.address("capture", "udp"), b"last")
    assert [line["text"] for line in capturing.next()] == ["last"]


def test_the_banner_is_sent_first(served: Superd) -> None:
    knocks = Knocks(served, "banner")
    with served.connect("banner") as client:
        greeting = "220 h\u00e9llo\r\n".encode()
        assert client.recv(len(greeting), socket.MSG_WAITALL) == greeting
        client.sendall(b"HI\n")
        assert client.recv(1) == b""
    assert [line["text"] for line in knocks.next()] == ["HI\n"]


@pytest.mark.parametrize("name", ["tarpit", "sticky"])
def test_a_tarpit_delays_the_close_and_reads_nothing(served: Superd, name: str) -> None:
    knocks = Knocks(served, name)
    with served.connect(name) as client:
        start = time.monotonic()
        client.sendall(b"abc")
        (line,) = knocks.next()  # before the connection is closed
        assert is_open(client)
        taken = 0
        while select.select([], [client], [], 0.1)[1]:  # until the kernel's buffers are full
            taken += send_until_blocked(client, 1 << 20)
            assert taken < 32 << 20
        client.settimeout(EVENT_TIMEOUT)
        assert receive_to_end(client)[0] == b""
        assert 0.95 <= time.monotonic() - start < 5
    assert line["text"] == ("abc" if name == "tarpit" else "")
    served.wait_until_idle(name)


def test_a_client_that_closes_in_a_tarpit_is_released(served: Superd) -> None:
    with served.connect("sticky"):
        until(lambda: served.counts("sticky")["active"], "the client")
    served.wait_until_idle("sticky")


def test_many_concurrent_clients_are_all_recorded(served: Superd, capturing: Knocks) -> None:
    clients = [served.connect("capture") for _ in range(200)]
    for number, client in enumerate(clients):
        client.sendall(b"%d\n" % number)
        client.shutdown(socket.SHUT_WR)
    assert [receive_and_close(client) for client in clients] == [b""] * 200
    assert sorted(int(line["text"]) for line in capturing.next(200)) == list(range(200))


RECORDED = """
[daemon]
workers = 1
record-log = "{directory}/records"
record-format = "{form}"
[service.sniffer]
plugin = "sniffer"
listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0", "tcp://[::1]:0"]
record = ["noted"]
options = { capture = {} }
"""
HTTP = b"GET /x HTTP/1.1\r\nHost: \x1b[2J\r\n\r\n"


def recorded(start: Start, form: str) -> tuple[Superd, list[str]]:
    """Knock over tcp, udp and IPv6; return the records."""
    served = start(RECORDED.replace("{form}", form))
    file = served.directory / "records"

    knock(served.address("sniffer"), HTTP, "127.0.0.2")
    texts(file, 1)
    send_udp(served.address("sniffer", "udp"), b"\0")
    texts(file, 2)
    knock(served.addresses("sniffer")[1])
    return served, texts(file, 3)


def test_records_as_text(start: Start) -> None:
    served, (tcp, udp, ipv6) = recorded(start, "text")
    port, packets = served.address("sniffer")[1], served.address("sniffer", "udp")[1]
    assert "info: Connection from 127.0.0.2:" in tcp
    assert f" to 127.0.0.1:{port} service=sniffer conn=" in tcp
    assert " protocol=http " in tcp
    assert "\x1b" not in tcp
    assert "info: Datagram from 127.0.0.1:" in udp
    assert f" to 127.0.0.1:{packets} service=sniffer conn=" in udp
    assert "info: Connection from [::1]:" in ipv6
    assert f" to [::1]:{served.addresses('sniffer')[1][1]} service=sniffer" in ipv6
    assert "heard=" not in ipv6


def test_records_as_json(start: Start) -> None:
    served, _ = recorded(start, "json")
    tcp, udp, ipv6 = lines(served.directory / "records", 3)
    assert {line["event"] for line in (tcp, udp, ipv6)} == {"noted"}
    assert tcp["peer"].startswith("127.0.0.2:")
    assert tcp["local"] == f"tcp://127.0.0.1:{served.address('sniffer')[1]}"
    assert tcp["facts"]["protocol"] == "http"
    assert tcp["facts"]["bytes"] == str(len(HTTP))
    assert tcp["facts"]["heard"] == r"GET /x HTTP/1.1\r\nHost: \x1b[2J\r\n\r\n"
    assert udp["text"].startswith("Datagram from ")
    assert udp["conn"] != tcp["conn"] != ipv6["conn"]
    assert "facts" not in ipv6


def test_records_in_the_format_of_xinetd(start: Start) -> None:
    served, (tcp, udp, ipv6) = recorded(start, "xinetd")
    _, _, rest = tcp.partition(": ")
    port = served.address("sniffer")[1]
    assert rest.startswith("NOTE: sniffer from=127.0.0.2 Connection from 127.0.0.2:")
    assert rest.endswith(f" to 127.0.0.1:{port}")
    assert "NOTE: sniffer from=127.0.0.1 Datagram from 127.0.0.1:" in udp
    assert "NOTE: sniffer from=::1 Connection from [::1]:" in ipv6


@pytest.mark.file("/etc/services")
def test_a_port_has_a_name(start: Start) -> None:
    """By /etc/services: tested with the first free port above 1024 at an unused address."""
    host = own_host()
    named = [(port, name) for (kind, port), name in port_names().items() if kind == "tcp"]
    port, name = next(one for one in named if one[0] > 1024 and is_free((host, one[0])))
    served = start(service("sniffer", listen=f'"tcp://{host}:{port}"'))
    knock((host, port))
    (line,) = lines(served.directory / "sniffer.out", 1)
    assert (line["port"], line["port-name"]) == (port, name)


def is_free(address: Address) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError:
            return False
    return True


def test_a_note_belongs_to_the_connection_that_was_accepted(start: Start) -> None:
    head = '[daemon]\nrecord-log = "{directory}/records"\nrecord-format = "json"\n'
    served = start(head + service("sniffer"))
    knock(served.address("sniffer"))
    (noted,), (accepted,), (closed,) = (
        events(served, 1, kind) for kind in ("noted", "accepted", "closed")
    )
    for key in ("conn", "peer", "local"):
        assert noted[key] == accepted[key] == closed[key]
