"""The files of the sniffer: rotated under load, readable by Wireshark, safe against clients.

A client's input can be anything; it makes one line and its packets, and each is bounded.
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import threading
from pathlib import Path

import pytest

from superd.observe.connections import LONGEST_LINE
from tests.conftest import Start
from tests.plugins.sniffer.knocking import knock, lines, send_udp, talk, texts
from tests.support.clients import connect_tcp, connect_unix
from tests.support.harness import Address, Superd, ask_udp, whole_lines
from tests.support.proc import children, memory

SIZE = 256 * 1024

TOML = """
[daemon]
workers = 2
record-log = "{directory}/records"
record-format = "FORM"

[service.sniffer]
plugin = "sniffer"
listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0", "tcp://[::1]:0", "unix://{directory}/door"]
record = ["noted"]
[service.sniffer.options]
output = "{directory}/out"
pcap = "{directory}/out.pcap"
capture = { bytes = "64KiB", time = "1m" }
FILES

[service.echo]
plugin = "echo"
listen = "udp://127.0.0.1:0"
record = []
"""
MANY = 'file-size = "256KiB"\nfiles = 40'
FEW = 'file-size = "256KiB"\nfiles = 3'


def toml(files: str = "", form: str = "json") -> str:
    return TOML.replace("FILES", files).replace("FORM", form)


def rotated(superd: Superd, name: str = "out") -> list[Path]:
    """Return a file and its older files."""
    return [superd.directory / name, *superd.directory.glob(f"{name}.[0-9]*")]


def knock_in_parallel(address: Address, clients: int, each: int) -> None:
    """Knock from several threads at once; the data identifies the client and the knock."""

    def visit(number: int) -> None:
        for count in range(each):
            knock(address, b"%d-%d " % (number, count) + b"\0" * (count % 700))

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def recorded_knocks(superd: Superd) -> list[str]:
    """Return the knocks in the lines of all files; fail on an incomplete line."""
    found = []
    for path in rotated(superd):
        assert path.stat().st_size <= SIZE
        texts = [json.loads(line)["text"] for line in path.read_bytes().splitlines()]
        found += [text.partition(" ")[0] for text in texts]
    return found


def test_rotation_under_load_keeps_all_lines_whole(start: Start) -> None:
    served = start(toml(MANY))
    knock_in_parallel(served.address("sniffer"), 4, 200)
    wanted = sorted(f"{number}-{count}" for number in range(4) for count in range(200))
    served.wait_until_idle("sniffer")
    assert served.stop() == 0  # pending lines are written at the stop
    assert sorted(recorded_knocks(served)) == wanted
    assert sum(path.stat().st_size > 0 for path in rotated(served)) > 2
    packets = rotated(served, "out.pcap")
    assert all(path.stat().st_size <= SIZE for path in packets)


def test_rotation_drops_the_oldest_lines(start: Start) -> None:
    served = start(toml(FEW))
    knock_in_parallel(served.address("sniffer"), 4, 250)
    served.stop()
    found = recorded_knocks(served)
    assert len(rotated(served)) == 3
    assert len(found) == len(set(found)) < 1000
    assert {f"{number}-249" for number in range(4)} <= set(found)
    numbers = sorted(int(text.partition("-")[2]) for text in found)
    assert numbers[0] > 20


@pytest.mark.tool("tshark")
def test_tshark_reads_the_capture_file(start: Start) -> None:
    served = start(toml())
    data = bytes(range(256)) * 20
    knock(served.address("sniffer"), data)
    knock(served.addresses("sniffer")[1], b"over IPv6")
    peer = send_udp(served.address("sniffer", "udp"), b"a datagram")
    with connect_unix(served.directory / "door") as client:
        talk(client, b"no packet")
    lines(served.directory / "out", 4)
    served.stop()
    ports = [served.address("sniffer")[1], served.addresses("sniffer")[1][1]]
    for port, sent in zip(ports, (data, b"over IPv6"), strict=True):
        fields = tshark(served, f"tcp.dstport == {port}", "tcp.payload")
        assert bytes.fromhex("".join(fields)) == sent
    port = served.address("sniffer", "udp")[1]
    assert tshark(served, f"udp.dstport == {port}", "data.data", "udp.srcport") == [
        f"{b'a datagram'.hex()}\t{peer[1]}"
    ]
    assert tshark(served, "_ws.malformed || tcp.analysis.flags || ip.checksum.status == 0") == []


def tshark(superd: Superd, which: str, *fields: str) -> list[str]:
    """Return fields of the packets that match a filter."""
    shown = [word for field in fields or ("frame.number",) for word in ("-e", field)]
    checks = ["-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]
    file = str(superd.directory / "out.pcap")
    done = subprocess.run(
        ["tshark", "-n", "-r", file, *checks, "-Y", which, "-T", "fields", *shown],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if line.strip()]


@pytest.mark.tool("tcpdump")
def test_tcpdump_reads_the_capture_file(start: Start) -> None:
    served = start(toml())
    knock(served.address("sniffer"), b"hello")
    lines(served.directory / "out", 1)
    served.stop()
    file = str(served.directory / "out.pcap")
    done = subprocess.run(
        ["tcpdump", "-vv", "-n", "-r", file], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("cksum") == 5  # a handshake, and a segment with its answer
    assert "incorrect" not in done.stdout
    assert "bad" not in done.stdout
    assert "length 5" in done.stdout


NASTY = [
    b"\x1b[2J\x1b]0;owned\x07",
    b"\r\n2026-01-01 00:00:00.000 superd[1] info: Connection from 6.6.6.6:6 to evil:6\r\n",
    b"\0\0\0\n\n\n\0",
    b'"},"event":"accepted","conn":"1-1"}\n{"time":1700000000.000,"pid":1,"service":"echo"}\n',
    b"' service=echo conn=9-9 protocol=\"x\" heard='",
    b'{"time": 1, "service": "sniffer", "peer": "6.6.6.6:6"}\n' * 50,
    "\u2028\u2029\u202e\u0085\ufeff".encode() + b"\x85\x9b\xff\xfe",
    b"%s%n%d{0}{x}$(id)`id`\\",
    b"GET /" + b"\x1b\n" * 300 + b' HTTP/1.1\r\nHost: \r\n x\r\nUser-Agent: "a" b=c\r\n\r\n',
    b"SSH-2.0-\x1b[31m\r\n",
    b"\n" * 60_000,
]


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_client_cannot_forge_a_line(start: Start, form: str) -> None:
    served = start(toml(form=form))
    for data in NASTY:
        knock(served.address("sniffer"), data)
        send_udp(served.address("sniffer", "udp"), data)
    number = 2 * len(NASTY)
    found = lines(served.directory / "out", number)
    records = served.directory / "records"
    texts(records, number)
    served.stop()
    recorded = whole_lines(records).splitlines()
    assert len(found) == number == len(recorded)
    kept = sorted(base64.b64decode(line["base64"]) for line in found)
    assert kept == sorted(NASTY * 2)
    assert {line["service"] for line in found} == {"sniffer"}
    for line in (records.read_bytes() + (served.directory / "out").read_bytes()).split(b"\n"):
        assert line.decode().isprintable()
    for text in recorded:
        assert len(text.encode()) < (1 + (form == "text")) * LONGEST_LINE
        if form == "json":
            event = json.loads(text)
            assert (event["event"], event["service"]) == ("noted", "sniffer")
        else:
            assert " info: Connection from 127.0.0.1:" in text or " info: Datagram" in text


def test_clients_that_send_megabytes_cost_little_memory(start: Start) -> None:
    """Input beyond the capture is not kept."""
    served = start(toml(FEW))
    knock(served.address("sniffer"), b"x" * (1 << 20))
    workers = children(served.pid)
    before = sum(map(memory, workers))
    piece = b'\n\x1b[2J\0"\\' * 10_000

    def flood() -> None:
        with contextlib.suppress(OSError), connect_tcp(served.address("sniffer")) as client:
            for _ in range(10_000_000 // len(piece)):
                client.sendall(piece)

    threads = [threading.Thread(target=flood) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    served.wait_until_idle("sniffer")
    assert children(served.pid) == workers
    assert sum(map(memory, workers)) - before < 30_000  # kB
    assert ask_udp(served.address("echo", "udp"), b"still there") == b"still there"
    served.stop()
    for path in rotated(served):
        assert path.stat().st_size <= SIZE
        for line in path.read_bytes().splitlines():
            assert json.loads(line)["bytes"] <= 64 * 1024


def test_two_services_can_share_a_file(start: Start) -> None:
    text = toml(MANY)
    text += (
        text[text.index("[service.sniffer]") : text.index("[service.echo]")]
        .replace("service.sniffer", "service.second")
        .replace("{directory}/door", "{directory}/other")
    )
    served = start(text)
    for number in range(50):
        knock(served.address("sniffer"), b"a%d" % number)
        knock(served.address("second"), b"b%d" % number)
    found = lines(served.directory / "out", 100)
    assert sorted(line["text"] for line in found) == sorted(
        f"{x}{n}" for x in "ab" for n in range(50)
    )
    assert {line["service"] for line in found} == {"sniffer", "second"}


def test_a_connected_client_is_recorded_at_the_stop(start: Start) -> None:
    served = start(toml().replace("workers = 2", "workers = 1"))
    with served.connect("sniffer") as client:
        client.sendall(b"half")
        knock(served.address("sniffer"), b"another")  # the worker reads it after that
        lines(served.directory / "out", 1)
        assert served.stop() == 0
    assert [line["text"] for line in lines(served.directory / "out", 2)] == ["another", "half"]
