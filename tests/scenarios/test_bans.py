"""Bans: by an operator or a plugin, for all services, and kept over a restart of superd."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from superd.admission.bans import MAX_BANS, BanTable
from superd.master.bans import OPERATOR, Bans
from superd.master.logs.log import Log
from superd.net.patterns import IPNetwork, parse_network
from tests.conftest import Start
from tests.scenarios.test_access import is_admitted
from tests.support.harness import Superd, exchange, make_plugin, superd, until

TOML = """
[daemon]
workers = 2
never-ban = ["127.0.0.1", "10.0.0.0/8"]

[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"

[service.other]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
pool = "other"
"""


@pytest.fixture
def served(start_superd: Start) -> Superd:
    return start_superd(TOML)


def banned(served: Superd) -> dict[str, dict[str, object]]:
    done = served.run("bans", "--json")
    return {ban["network"]: ban for ban in json.loads(done.stdout)}


def test_a_banned_source_is_refused_by_every_service_until_the_ban_is_lifted(
    start_superd: Start,
) -> None:
    served = start_superd(TOML)
    done = served.run("ban", "127.0.0.2", "--for", "10m", "--reason", "knocks too often")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for service in ("echo", "other"):
        assert not is_admitted(served, service, "127.0.0.2")
        assert is_admitted(served, service, "127.0.0.3")
        assert served.counts(service)["refused-banned"] == 1
    shown = served.run("bans").stdout
    assert shown.startswith("127.0.0.2  until 2")
    assert shown.endswith("by operator  knocks too often\n")
    assert served.status()["bans"] == 1
    assert served.run("unban", "127.0.0.2").returncode == 0
    assert is_admitted(served, "echo", "127.0.0.2")
    assert banned(served) == {}


@pytest.mark.root
def test_workers_can_read_the_ban_table_but_not_write_it(start_superd: Start) -> None:
    served = start_superd(TOML)
    for pid, rights in [(served.pid, "rw-s"), *((worker, "r--s") for worker in served.workers())]:
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        assert {line.split()[1] for line in maps if "memfd:superd-bans" in line} == {rights}


def test_a_network_can_be_banned_and_its_open_connections_continue(
    start_superd: Start,
) -> None:
    served = start_superd(TOML)
    with served.connect("echo", "127.0.7.1") as client:
        client.sendall(b"a")
        assert client.recv(1) == b"a"
        assert served.run("ban", "127.0.7.0/24").returncode == 0
        client.sendall(b"b")
        assert client.recv(1) == b"b"
    assert not is_admitted(served, "echo", "127.0.7.1")
    assert not is_admitted(served, "echo", "127.0.7.254")
    assert is_admitted(served, "echo", "127.0.8.1")


def test_a_ban_expires(start_superd: Start) -> None:
    served = start_superd(TOML)
    served.run("ban", "127.0.0.2", "--for", "1500ms")
    assert not is_admitted(served, "echo", "127.0.0.2")
    until(lambda: is_admitted(served, "echo", "127.0.0.2"), "the end of the ban")
    until(lambda: banned(served) == {}, "the removal of the ban")


WRONG = [
    (["ban", "127.0.0.1", "--yes"], 1, "127.0.0.1 is protected by never-ban (127.0.0.1)"),
    (["ban", "127.0.0.0/8", "--yes"], 1, "protected by never-ban"),
    (["ban", "0.0.0.0/0"], 2, "a ban of 0.0.0.0/0 hits this machine (127.0.0.1); --yes bans it"),
    (["ban", "::/0"], 2, "a ban of ::/0 hits this machine (::1); --yes bans it all the same"),
    (["ban", "64.0.0.0/2"], 2, "a ban of 64.0.0.0/2 hits this machine"),
    (["ban", "32.0.0.0/3"], 2, "a ban of 32.0.0.0/3 hits 536,870,912 addresses; --yes"),
    (["ban", "192.0.2.1-9"], 2, "is a range; write its networks: 192.0.2.1, 192.0.2.2/31, 192.0."),
    (["ban", "10.1.2.3"], 1, "10.1.2.3 is protected by never-ban (10.0.0.0/8)"),
    (["ban", "192.0.2.1/24"], 2, 'did you mean "192.0.2.0/24"?'),
    (["ban", "host.example"], 2, "is not an address or a network"),
    (["ban", "192.0.2.1", "--for", "ever"], 2, "--for: expected a duration"),
    (
        ["ban", "192.0.2.1", "--for", "0s"],
        1,
        "expected a ban of more than 0 s and at most 366 days, found 0 s",
    ),
    (["ban", "192.0.2.1", "--for", "400d"], 2, "at most a year"),
    (["unban", "192.0.2.1"], 1, "192.0.2.1 is not banned"),
]


def test_a_wrong_ban_or_unban_is_an_error(start_superd: Start) -> None:
    served = start_superd(TOML)
    for arguments, code, text in WRONG:
        done = served.run(*arguments)
        assert (done.returncode, done.stdout) == (code, "")
        assert text in done.stderr
        assert done.stderr.count("\n") == 1
    assert banned(served) == {}


@pytest.mark.parametrize(
    ("printed", "network"),
    [
        ("192.0.2.1:5123", "192.0.2.1"),
        ("[192.0.2.1]:80", "192.0.2.1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[fe80::1%eth0]:443", "fe80::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::/32", "2001:db8::/32"),
    ],
)
def test_commands_take_an_address_in_each_form_that_superd_prints(
    served: Superd, printed: str, network: str
) -> None:
    assert served.run("ban", printed).returncode == 0
    assert list(banned(served)) == [network]
    if "/" not in printed:
        done = served.run("explain", "echo", printed)
        assert done.stdout.startswith(f"refused (banned): {network} until ")
    assert served.run("unban", printed).returncode == 0
    assert banned(served) == {}


def test_a_ban_of_the_operators_own_address_needs_consent(served: Superd) -> None:
    served.env = {"SSH_CONNECTION": "198.51.100.7 50000 192.0.2.1 22"}
    done = served.run("ban", "198.51.100.0/24")
    assert (done.returncode, done.stderr) == (
        2,
        "superd: a ban of 198.51.100.0/24 hits you (198.51.100.7); --yes bans it all the same\n",
    )
    assert served.run("ban", "198.51.100.8").returncode == 0
    assert served.run("ban", "198.51.100.0/24", "--yes").returncode == 0


def test_the_commands_for_bans_fail_without_a_running_daemon(tmp_path: Path) -> None:
    stopped = Superd(tmp_path, TOML)
    stopped.write()
    for arguments in (["ban", "192.0.2.1"], ["unban", "192.0.2.1"], ["bans"]):
        done = stopped.run(*arguments)
        assert (done.returncode, done.stderr) == (1, "superd: it is not running\n")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_bans_outlive_the_daemon(start_superd: Start, end: signal.Signals) -> None:
    served = start_superd(TOML)
    served.run("ban", "127.0.0.2", "--reason", "evil \x1b[2J\n")
    file = served.directory / "bans"
    until(file.exists, "the ban file")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = banned(served)
    served.signal(end)
    served.wait()
    served.stop()
    served.announced.clear()
    served.start()
    assert banned(served) == before
    assert before["127.0.0.2"]["reason"] == r"evil \x1b[2J\n"
    assert not is_admitted(served, "echo", "127.0.0.2")


def test_a_damaged_ban_file_is_reported_and_renamed_and_its_valid_bans_apply(
    start_superd: Start, tmp_path: Path
) -> None:
    file = tmp_path / "my.bans"
    good = {"network": "127.0.0.2", "until": time.time() + 600, "by": "operator", "reason": ""}
    over = {**good, "network": "127.0.0.3", "until": time.time() - 1}
    protected = {**good, "network": "127.0.0.1"}
    lines = [json.dumps(ban) for ban in (good, over, protected)]
    garbage = [b"garbage", b"\xff\x00", b"[1]", b'{"network": 5}', b"9" * 10_000, b"[" * 10_000]
    file.write_bytes(b"\n".join([*garbage, *(line.encode() for line in lines)]))
    served = start_superd(TOML.replace("[daemon]", f'[daemon]\nban-file = "{file}"'))
    served.wait_for_log(rf"{file}:1: not a saved ban")
    assert (tmp_path / "my.bans.damaged").exists()
    assert list(banned(served)) == ["127.0.0.2"]


def test_a_ban_file_that_cannot_be_written_is_reported_and_the_bans_apply(
    start_superd: Start, tmp_path: Path
) -> None:
    (tmp_path / "bans.new").mkdir()
    toml = TOML.replace("[daemon]", f'[daemon]\nban-file = "{tmp_path}/bans"')
    served = start_superd(toml)
    served.run("ban", "127.0.0.2")
    served.wait_for_log(r"cannot save bans to .*: Is a directory")
    assert not is_admitted(served, "echo", "127.0.0.2")


BANNER = """
    from superd.plugin import Service, hookimpl

    class Banner(Service):
        name = "banner"

        async def stream(self, conn):
            self.ban(conn.peer, 600, "said: " + (await conn.readline()).decode())
            await conn.send(b"banned\\n")

        def datagram(self, request):
            for number in range(int(request.data)):
                host = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
                peer = type(request.peer)(request.peer.transport, host, 1)
                self.ban(peer, 600 + number, "one of many")
            return b"."

    @hookimpl
    def superd_services():
        return [Banner]
"""
BANNERS = """
[service.banner]
plugin = "banner"
listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]
source-netblock = { ipv4 = 24 }

[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
pool = "other"
"""


def test_a_plugin_bans_its_client_from_all_services(start_superd: Start, tmp_path: Path) -> None:
    served = start_superd(BANNERS, env=make_plugin(tmp_path / "plugins", "banner", BANNER))
    assert exchange(served.connect("banner", "127.0.5.1"), b"hello\x1b\n") == b"banned\n"
    until(lambda: served.answer()["bans"] == 1, "the ban")
    assert not is_admitted(served, "echo", "127.0.5.200")
    assert is_admitted(served, "echo", "127.0.6.1")
    (ban,) = banned(served).values()
    assert ban["network"] == "127.0.5.0/24"
    assert ban["by"] == "service banner"
    assert str(ban["reason"]).isprintable()
    served.wait_for_log(r"banned 127\.0\.5\.0/24 for 600 s service=banner")


PLUGIN = "service banner"


def host(number: int) -> IPNetwork:
    return parse_network(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")


@pytest.fixture
def bans(tmp_path: Path) -> Iterator[Bans]:
    log = Log([str(tmp_path / "log")], "text")
    yield Bans(None, log, BanTable())
    log.close()


def test_the_number_of_bans_is_limited_and_bans_that_expire_first_are_dropped(
    bans: Bans, tmp_path: Path
) -> None:
    for number in range(MAX_BANS + 10):
        assert bans.add(host(number), 600 + number, OPERATOR, "") == ""
    assert len(bans) == len(bans.table) == MAX_BANS - MAX_BANS // 100 + 10
    assert host(99) not in bans
    assert host(100) in bans
    assert (tmp_path / "log").read_text().count("\n") == 1


@pytest.mark.parametrize("by", [PLUGIN, OPERATOR])
def test_bans_of_plugins_are_dropped_before_bans_of_operators(bans: Bans, by: str) -> None:
    for number in range(MAX_BANS):
        is_late = number >= MAX_BANS - 200
        assert bans.add(host(number), 600 + number, PLUGIN if is_late else OPERATOR, "") == ""
    assert bans.add(host(MAX_BANS), 600, by, "") == ""
    assert all(host(number) in bans for number in range(MAX_BANS - 200))
    assert host(MAX_BANS - 200) not in bans
    assert host(MAX_BANS - 1) in bans


def test_a_plugin_cannot_ban_if_bans_of_operators_fill_the_table(
    bans: Bans, tmp_path: Path
) -> None:
    for number in range(MAX_BANS):
        assert bans.add(host(number), 600, OPERATOR, "") == ""
    assert (
        bans.add(host(MAX_BANS), 900, PLUGIN, "")
        == "there is no room for another ban; lift one first"
    )
    assert len(bans) == MAX_BANS
    assert (tmp_path / "log").read_text() == ""
    assert bans.add(host(MAX_BANS), 900, OPERATOR, "") == ""
    assert host(MAX_BANS) in bans


def test_a_plugin_cannot_shorten_a_ban_of_an_operator(bans: Bans) -> None:
    assert bans.add(host(1), 600, OPERATOR, "") == ""
    before = bans.listed()
    assert bans.add(host(1), 0.001, PLUGIN, "") == ""
    assert bans.listed() == before


def test_explain_considers_bans(start_superd: Start) -> None:
    served = start_superd(TOML)
    served.run("ban", "127.0.0.2", "--reason", "rude")
    done = superd("explain", "-c", str(served.file), "echo", "127.0.0.2")
    assert done.returncode == 1
    assert done.stdout.startswith("refused (banned): 127.0.0.2 until ")
    assert done.stdout.endswith("by operator (rude)\n")
    until((served.directory / "bans").exists, "the ban file")
    os.kill(served.pid, signal.SIGTERM)
    served.wait()
    assert superd("explain", "-c", str(served.file), "echo", "127.0.0.2").stdout == done.stdout
