"""Bans of sources that knock too often, by all services; and clients' host names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.plugins.sniffer.knocking import Knocks, knock, lines, send_udp
from tests.scenarios.test_access import is_admitted
from tests.support.dns import NameServer, name_server
from tests.support.harness import Superd, until
from tests.support.namespaces import Namespace, network_namespace

TOML = """
[daemon]
workers = 1
never-ban = ["127.0.0.40"]

[service.sniffer]
plugin = "sniffer"
listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0", "unix://{directory}/door"]
KEYS
[service.sniffer.options]
output = "{directory}/sniffer.out"
ban = { after = 3, within = "1m", for = "10m", never = ["127.0.0.30", "127.0.3.0/24"] }

[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
pool = "other"
"""


def banned(superd: Superd) -> dict[str, dict[str, str]]:
    return {ban["network"]: ban for ban in json.loads(superd.run("bans", "--json").stdout)}


def wait_for_bans(superd: Superd, number: int) -> None:
    until(lambda: superd.answer()["bans"] == number, f"{number} bans")


def knock_by_tcp(served: Superd, source: str) -> None:
    knock(served.address("sniffer"), b"", source)


def knock_by_udp(served: Superd, source: str) -> None:
    send_udp(served.address("sniffer", "udp"), b"x", source)


def test_the_third_knock_bans_a_source(start: Start) -> None:
    served = start(TOML.replace("KEYS", ""))
    knocks = Knocks(served, "sniffer")
    for _ in range(2):
        knock_by_tcp(served, "127.0.0.2")
        knock_by_tcp(served, "127.0.0.3")
    knocks.next(4)
    assert served.answer()["bans"] == 0
    assert is_admitted(served, "echo", "127.0.0.2")
    knock_by_tcp(served, "127.0.0.2")
    knocks.next(1)
    wait_for_bans(served, 1)
    assert not is_admitted(served, "echo", "127.0.0.2")
    assert is_admitted(served, "echo", "127.0.0.3")
    (ban,) = banned(served).values()
    assert (ban["network"], ban["by"]) == ("127.0.0.2", "service sniffer")
    assert ban["reason"] == "3 knocks"
    served.wait_for_log(r"banned 127\.0\.0\.2 for 600 s service=sniffer")
    refused = served.counts("sniffer")["refused-banned"]
    knock_by_tcp(served, "127.0.0.2")
    until(lambda: served.counts("sniffer")["refused-banned"] == refused + 1, "a refusal")
    knock_by_tcp(served, "127.0.0.4")
    (line,) = knocks.next(1)
    assert line["peer"].startswith("127.0.0.4:")


def test_datagrams_ban_no_source_as_they_may_be_forged(start: Start) -> None:
    served = start(TOML.replace("KEYS", ""))
    knocks = Knocks(served, "sniffer")
    for _ in range(5):
        knock_by_udp(served, "127.0.0.2")
    knocks.next(5)
    for _ in range(2):
        knock_by_tcp(served, "127.0.0.2")
    knocks.next(2)
    for _ in range(3):
        knock_by_tcp(served, "127.0.0.3")  # a ban requested before would be there by then
    wait_for_bans(served, 1)
    assert list(banned(served)) == ["127.0.0.3"]


def test_exempt_sources_are_never_banned(start: Start) -> None:
    served = start(TOML.replace("KEYS", ""))
    knocks = Knocks(served, "sniffer")
    for source in ("127.0.0.30", "127.0.3.7", "127.0.0.40"):
        for _ in range(4):
            knock_by_tcp(served, source)
    knocks.next(12)
    for _ in range(3):
        knock_by_tcp(served, "127.0.0.41")  # a ban requested before would be there by then
    wait_for_bans(served, 1)
    assert list(banned(served)) == ["127.0.0.41"]
    for source in ("127.0.0.30", "127.0.3.7", "127.0.0.40"):
        assert is_admitted(served, "echo", source)
    assert "Traceback" not in served.log()


def test_a_ban_ends_and_the_count_restarts(start: Start) -> None:
    served = start(TOML.replace("KEYS", "").replace('for = "10m"', 'for = "1500ms"'))
    for _ in range(3):
        knock_by_tcp(served, "127.0.0.2")
    wait_for_bans(served, 1)
    assert not is_admitted(served, "echo", "127.0.0.2")
    until(lambda: is_admitted(served, "echo", "127.0.0.2"), "the end of the ban")
    for _ in range(2):
        knock_by_tcp(served, "127.0.0.2")
    lines(served.directory / "sniffer.out", 5)
    assert is_admitted(served, "echo", "127.0.0.2")
    knock_by_tcp(served, "127.0.0.2")
    wait_for_bans(served, 1)


def test_the_netblock_of_the_entry_is_banned(start: Start) -> None:
    served = start(TOML.replace("KEYS", "source-netblock = { ipv4 = 24 }"))
    for _ in range(3):
        knock_by_tcp(served, "127.0.5.1")
    wait_for_bans(served, 1)
    assert list(banned(served)) == ["127.0.5.0/24"]
    assert not is_admitted(served, "echo", "127.0.5.200")


NAMED = """
[daemon]
record-log = "{directory}/records"
record-format = "json"

[service.sniffer]
plugin = "sniffer"
listen = ["tcp://127.0.0.1:7001", "udp://127.0.0.1:7001", "unix://{directory}/door"]
chroot = "{jail}"
record = ["noted"]
options = { names = true, capture = {}, output = "{directory}/out", pcap = "{directory}/out.pcap" }
"""


@pytest.fixture
def space() -> Iterator[Namespace]:
    with network_namespace() as space:
        yield space


@pytest.fixture
def names(space: Namespace) -> Iterator[NameServer]:
    with name_server(space) as names:
        yield names


@pytest.mark.root
@pytest.mark.tool("ip")
def test_a_confirmed_name_is_recorded_also_in_a_jail(
    start: Start, space: Namespace, names: NameServer, jail: Path
) -> None:
    names.names = {
        "127.0.0.2": b"good.example",
        "127.0.0.3": b"liar.example",
        "127.0.0.4": b"evil\n\x1b[2J.example",
    }
    names.addresses = {
        b"good.example": "127.0.0.2",
        b"liar.example": "127.0.0.99",
        b"evil\n\x1b[2j.example": "127.0.0.4",
    }
    served = start(NAMED.replace("{jail}", str(jail)), *space.wrapper)
    with space.inside():
        for number in range(2, 6):
            knock(("127.0.0.1", 7001), b"hello", f"127.0.0.{number}")
        send_udp(("127.0.0.1", 7001), b"hello", "127.0.0.2")
    names_by_peer = {
        (line["transport"], line["peer"].partition(":")[0]): line["name"]
        for line in lines(served.directory / "out", 5)
    }
    assert names_by_peer == {
        ("tcp", "127.0.0.2"): "good.example",
        ("udp", "127.0.0.2"): "good.example",
        ("tcp", "127.0.0.3"): "",
        ("tcp", "127.0.0.4"): "",
        ("tcp", "127.0.0.5"): "",
    }
    texts = [line["text"] for line in lines(served.directory / "records", 5)]
    assert sum(" (good.example) to 127.0.0.1:" in text for text in texts) == 2
    assert not any("liar" in text or "evil" in text for text in texts)
    assert (served.directory / "out.pcap").stat().st_size > 24
    assert list(jail.iterdir()) == []


@pytest.mark.root
@pytest.mark.tool("ip")
def test_a_silent_name_server_delays_records_and_no_client(
    start: Start, space: Namespace, names: NameServer, jail: Path
) -> None:
    names.is_silent = True
    served = start(NAMED.replace("{jail}", str(jail)), *space.wrapper)
    with space.inside():
        for _ in range(20):
            knock(("127.0.0.1", 7001), b"hello", "127.0.0.2")
        assert served.counts("sniffer")["active"] == 0
    names.is_silent = False
    assert {line["name"] for line in lines(served.directory / "out", 20, 30)} == {""}
