"""The migration of inetd.conf and xinetd.conf: the keys of each field, and the notes."""

from __future__ import annotations

import grp
import pwd
import re
from pathlib import Path
from typing import Any

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from superd.migrate import inetd, xinetd
from superd.migrate.entries import Entry, Note, as_toml
from superd.migrate.programs import keep_privileges
from tests.config.configurations import written
from tests.conftest import Start
from tests.support.clients import connect_tcp
from tests.support.harness import exchange, superd
from tests.support.ports import free_port


def services_of(entries: list[Entry]) -> dict[str, Any]:
    """Return the services in the TOML of some entries, by name."""
    services: dict[str, Any] = tomli.loads(as_toml(entries)).get("service", {})
    return services


CAT = {"command": "/bin/cat"}
INETD_LINES = [
    (
        "finger stream tcp nowait nobody /bin/cat cat",
        {"plugin": "exec", "listen": "tcp://0.0.0.0:finger", "user": "nobody", "options": CAT},
    ),
    ("x stream tcp46 nowait nobody /bin/cat cat", {"listen": "tcp://*:x"}),
    ("x stream tcp6 nowait nobody /bin/cat cat", {"listen": "tcp://[::]:x"}),
    ("192.0.2.1:79 stream tcp nowait nobody /bin/cat", {"listen": "tcp://192.0.2.1:79"}),
    ("::1:79 stream tcp6 nowait nobody /bin/cat", {"listen": "tcp://[::1]:79"}),
    ("/run/x stream unix nowait root /bin/cat", {"listen": "unix:///run/x"}),
    ("tftp dgram udp wait nobody /bin/cat", {"listen": "udp://0.0.0.0:tftp", "wait": True}),
    ("x stream tcp nowait nobody:adm /bin/cat", {"user": "nobody", "group": "adm"}),
    ("x stream tcp nowait nobody.adm /bin/cat", {"user": "nobody", "group": "adm"}),
    ("x stream tcp nowait.60 nobody /bin/cat", {"rate": "60/min"}),
    (
        "x stream tcp nowait/10/20/5 nobody /bin/cat",
        {"max-connections": 10, "rate-per-source": "20/min", "max-per-source": 5},
    ),
    ("x stream tcp nowait/0/20 nobody /bin/cat", {"rate-per-source": "20/min"}),
    (
        "x stream tcp nowait nobody /bin/sh mysh -c x\\y",
        {"options": {"command": ["/bin/sh", "-c", "x\\y"], "argv0": "mysh"}},
    ),
    ("echo stream tcp nowait root internal", {"plugin": "echo"}),
    ("tcpmux stream tcp nowait root internal", {"plugin": "tcpmux"}),
    ("tcpmux/+x stream tcp nowait root /bin/cat", {"listen": "tcpmux://x"}),
    ("tcpmux/x stream tcp nowait root /bin/cat", {"listen": "tcpmux://x?greeting=service"}),
    ("daytime dgram udp wait root internal", {"plugin": "daytime"}),
]


@pytest.mark.parametrize(("line", "expected"), INETD_LINES)
def test_a_line_of_inetd_becomes_an_entry(line: str, expected: dict[str, Any]) -> None:
    entries, _ = inetd.read(f"# a comment\n\n{line}\n", "inetd.conf")
    (entry,) = services_of(entries).values()
    assert {key: entry[key] for key in expected} == expected
    assert "wait" not in entry or expected.get("wait")
    assert as_toml(entries).startswith("# inetd.conf:3\n")


UNSUPPORTED_LINES = [
    ("mountd/1 dgram rpc/udp wait root /bin/cat", "RPC"),
    ("x raw tcp nowait root /bin/cat", "socket type raw"),
    ("x stream sctp nowait root /bin/cat", "protocol sctp"),
    ("x stream udp nowait root /bin/cat", "protocol udp"),
    ("x stream tcp", "expected at least 6 fields, found 3"),
    ("x stream tcp nowait root internal", "no internal service x"),
]


@pytest.mark.parametrize(("line", "expected"), UNSUPPORTED_LINES)
def test_a_note_names_the_line_of_inetd_that_superd_cannot_serve(line: str, expected: str) -> None:
    entries, notes = inetd.read(f"\n{line}\n", "inetd.conf")
    assert entries == []
    (note,) = notes
    assert str(note).startswith("inetd.conf:2: left out: ")
    assert expected in note.text


LINES_WITH_NOTES = [
    ("x stream tcp nowait.60 root /bin/cat", "OpenBSD's serves one fewer"),
    ("x stream tcp nowait root/daemon /bin/cat", "login class daemon"),
    ("x stream tcp,rcvbuf=1m nowait root /bin/cat", "left out: the buffer sizes"),
    ("x stream tcp perhaps root /bin/cat", "expected wait or nowait, found perhaps"),
    ("x stream tcp nowait root /usr/sbin/tcpd in.x", "hosts.allow"),
    ("echo dgram udp wait root internal", "never with more bytes"),
]


@pytest.mark.parametrize(("line", "expected"), LINES_WITH_NOTES)
def test_a_note_explains_a_line_of_inetd_that_superd_serves_differently(
    line: str, expected: str
) -> None:
    entries, notes = inetd.read(line, "inetd.conf")
    assert len(entries) == 1
    assert [expected in note.text for note in notes] == [True]


def test_a_line_of_addresses_applies_to_the_lines_after_it() -> None:
    text = (
        "127.0.0.2,::1:\nx stream tcp46 nowait root /bin/cat\nw stream tcp nowait root /bin/cat\n"
        "*:\ny stream tcp nowait root /bin/cat"
    )
    entries, notes = inetd.read(text, "inetd.conf")
    assert [str(note) for note in notes] == [
        "inetd.conf:3: left out: ::1 is not an address of this protocol's family"
    ]
    services = services_of(entries)
    assert services["x"]["listen"] == ["tcp://127.0.0.2:x", "tcp://[::1]:x"]
    assert services["w"]["listen"] == "tcp://127.0.0.2:w"
    assert services["y"]["listen"] == "tcp://0.0.0.0:y"


@given(st.text())
def test_any_text_is_migrated_without_an_error(text: str) -> None:
    entries, _ = inetd.read(text, "inetd.conf")
    services_of(entries)


def migrated_service(tmp_path: Path, body: str, defaults: str = "") -> tuple[Any, list[Note]]:
    """Return the entry of a service of xinetd with some attributes, and the notes."""
    file = tmp_path / "xinetd.conf"
    base = "server = /bin/cat\npassenv =\n"
    for needed in ("socket_type = stream", "wait = no", "user = nobody"):
        if not re.search(rf"^{needed.split()[0]} ", body, re.MULTILINE):
            base += f"{needed}\n"
    file.write_text(f"defaults\n{{\n{defaults}\n}}\nservice finger\n{{\n{base}{body}\n}}\n")
    entries, notes = xinetd.read(file)
    services = services_of(entries)
    return (next(iter(services.values())) if services else None), notes


XINETD_ATTRIBUTES = [
    ("", {"plugin": "exec", "listen": "tcp://*:finger", "options": {**CAT, "pass-env": []}}),
    ("port = 7979\ntype = UNLISTED", {"listen": "tcp://*:7979"}),
    ("bind = 192.0.2.1", {"listen": "tcp://192.0.2.1:finger"}),
    ("interface = ::1", {"listen": "tcp://[::1]:finger"}),
    ("flags = IPv6", {"listen": "tcp://*:finger"}),
    ("flags = IPv6\nv6only = yes", {"listen": "tcp://[::]:finger"}),
    ("bind = ::", {"listen": "tcp://*:finger"}),
    ("flags = IPv4 NODELAY KEEPALIVE", {"listen": "tcp://0.0.0.0:finger", "nodelay": True}),
    ("socket_type = dgram\nprotocol = udp\nwait = yes", {"listen": "udp://*:finger", "wait": True}),
    ("group = 4", {"user": "nobody", "group": 4}),
    ("umask = 22", {"umask": "022"}),
    ("nice = 5", {"nice": 5}),
    ("server_args = -u -n", {"options": {"command": ["/bin/cat", "-u", "-n"], "pass-env": []}}),
    ("flags = NAMEINARGS\nserver_args = me -u",
     {"options": {"command": ["/bin/cat", "-u"], "argv0": "me", "pass-env": []}}),
    ("env = A=1\nenv += B=2=3",
     {"options": {**CAT, "env": {"A": "1", "B": "2=3"}, "pass-env": []}}),
    ("passenv += PATH TZ", {"options": {**CAT, "pass-env": ["PATH", "TZ"]}}),
    ("instances = 7", {"max-connections": 7, "on-limit": "reject"}),
    ("instances = UNLIMITED\nper_source = 3", {"max-per-source": 3}),
    ("cps = 25 30", {"rate": "25/s"}),
    ("max_load = 2.5", {"max-load": 2.5}),
    ("access_times = 8:00-18:00 20:00-22:00", {"access-times": ["8:00-18:01", "20:00-22:01"]}),
    ("only_from = 192.0.2.0 10.0.0.0/8 host.example .example.com ::1",
     {"allow": ["192.0.2.0/24", "10.0.0.0/8", "host.example", ".example.com", "::1"]}),
    ("only_from = 192.0.{2,3}", {"allow": ["192.0.2.0/24", "192.0.3.0/24"]}),
    ("only_from = 0.0.0.0", {"allow": ["0.0.0.0/0"]}),
    ("only_from = 192.0.2.7\nonly_from += 192.0.2.8\nonly_from -= 192.0.2.7",
     {"allow": ["192.0.2.8"]}),
    ("only_from =", {"allow": []}),
    ("no_access = 192.0.2.7", {"deny": ["192.0.2.7"]}),
    ("rlimit_as = 8M\nrlimit_cpu = 20\nrlimit_files = 100",
     {"rlimits": {"memory": "8MiB", "cpu": "20s", "nofile": 100}}),
    ("redirect = 192.0.2.80 80", {"plugin": "forward", "options": {"to": "tcp://192.0.2.80:80"}}),
    ("redirect = 2001:db8::1 http", {"options": {"to": "tcp://[2001:db8::1]:http"}}),
    ("redirect = www.example http", {"options": {"to": "tcp://www.example:http"}}),
    ("redirect = 10.1 80", {"options": {"to": "tcp://10.0.0.1:80"}}),
    ("redirect = 192.0.2.80 80\nwait = yes", {"enabled": False}),
    ("redirect = 192.0.2.80 80\nflags = NAMEINARGS", {"enabled": False}),
    ("redirect = 192.0.2.53 53\nsocket_type = dgram",
     {"options": {"to": "udp://192.0.2.53:53"}, "enabled": False}),
    ("disable = yes", {"enabled": False}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), XINETD_ATTRIBUTES)
def test_attributes_of_xinetd_become_keys(
    tmp_path: Path, body: str, expected: dict[str, Any]
) -> None:
    entry, _ = migrated_service(tmp_path, body)
    assert {key: entry.get(key) for key in expected} == expected


ATTRIBUTES_WITH_NOTES = [
    ("banner = /etc/banner", "banner:"),
    ("banner_success = /etc/banner", "banner_success:"),
    ("banner_fail = /etc/banner", "banner_fail:"),
    ("log_type = SYSLOG daemon", "log_type:"),
    ("log_on_success += PID", "log_on_success:"),
    ("log_on_failure = HOST", "log_on_failure:"),
    ("libwrap = x", "libwrap:"),
    ("mdns = yes", "mdns:"),
    ("deny_time = 60", "deny_time:"),
    ("rlimit_rss = 8M", "rlimit_rss: it has no equivalent"),
    ("nonsense = 5", "nonsense has no equivalent"),
    ("flags = SENSOR", "flag SENSOR"),
    ("flags = LABELED", "flag LABELED"),
    ("flags = WRONG", "xinetd rejects this value, and does not serve this service"),
    ("flags = INTERCEPT", "flag INTERCEPT"),
    ("v6only = no", "v6only"),
    ("groups = yes", "groups"),
    ("cps = 5 10", "never closes the port"),
    ("only_from = 10.1.0.0\nno_access = 10.0.0.0", "10.1.0.0/16 of only_from is left out"),
    ("only_from = .example.com\nno_access = 10.0.0.0", "the more specific"),
    ("redirect = relay.example 80", "superd looks the name up again"),
    ("type = RPC", "no RPC services"),
    ("type = TCPMUX", "its limits apply to clients of tcpmux, too"),
    ("socket_type = raw", "no raw services"),
    ("type = INTERNAL", "no internal service finger"),
    ("what is this", 'expected NAME = VALUE, found "what is this"'),
]


@pytest.mark.parametrize(("body", "expected"), ATTRIBUTES_WITH_NOTES)
def test_a_note_names_the_line_of_an_attribute_that_superd_handles_differently(
    tmp_path: Path, body: str, expected: str
) -> None:
    _, notes = migrated_service(tmp_path, body)
    (note,) = (note for note in notes if expected in note.text)
    assert note.file == str(tmp_path / "xinetd.conf")
    assert note.line >= 5


def test_the_groups_of_the_user_are_written(tmp_path: Path) -> None:
    """The first group of the machine that has members says which user is in it."""
    known = next((one for one in grp.getgrall() if _members(one)), None)
    if known is None:
        pytest.skip("needs a group with members")
    body = f"groups = yes\nuser = {_members(known)[0]}"
    entry, notes = migrated_service(tmp_path, body)
    assert known.gr_name in entry["groups"]
    assert any("on this machine" in note.text for note in notes)


def _members(group: grp.struct_group) -> list[str]:
    """Return the known users that are in a group which is not their first."""
    users = {one.pw_name: one.pw_gid for one in pwd.getpwall()}
    return [name for name in group.gr_mem if users.get(name, group.gr_gid) != group.gr_gid]


@pytest.mark.parametrize(
    ("words", "is_told"),
    [
        ("/usr/bin/python3 /opt/menu/menu.py", True),
        ("/usr/sbin/server -d", True),
        ("/usr/sbin/server /usr/local/bin/server", False),
        ("/bin/sh -sh", False),
        ("/usr/sbin/tcpd /usr/sbin/in.fingerd", False),
        ("/usr/sbin/server in.server", False),
    ],
)
def test_a_note_says_that_an_argument_is_only_a_name(words: str, is_told: bool) -> None:
    _, notes = inetd.read(f"# comment\n8063 stream tcp nowait nobody {words}\n", "inetd.conf")
    found = [note for note in notes if "which is not an argument" in note.text]
    assert [note.line for note in found] == ([2] if is_told else [])


def test_a_program_that_is_set_user_id_keeps_its_privileges(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.touch()
    for mode, told in ((0o4755, "is set-user-ID"), (0o2755, "is set-group-ID"), (0o755, "")):
        program.chmod(mode)
        entries, _ = inetd.read(f"1 stream tcp nowait nobody {program} program x\n", "inetd.conf")
        notes = keep_privileges(entries)
        assert [(note.line, f"{told}: " in note.text) for note in notes] == [(1, True)] * bool(told)
        assert entries[0].keys.get("no-new-privs", True) is not bool(told)


def test_a_service_inherits_the_defaults_and_overrides_them(tmp_path: Path) -> None:
    defaults = "instances = 50\nper_source = 5\nlog_type = SYSLOG daemon\nserver = /bin/sh"
    entry, notes = migrated_service(tmp_path, "per_source = 9", defaults)
    assert (entry["max-connections"], entry["max-per-source"]) == (50, 9)
    assert sum("log_type" in note.text for note in notes) == 1
    assert sum("server has no meaning in the defaults" in note.text for note in notes) == 1


@pytest.mark.parametrize(
    ("defaults", "enabled"),
    [("enabled = other", False), ("enabled = finger", True), ("disabled = finger", False)],
)
@pytest.mark.file("/etc/services")
def test_the_defaults_enable_and_disable_services_by_their_id(
    tmp_path: Path, defaults: str, enabled: bool
) -> None:
    entry, _ = migrated_service(tmp_path, "", defaults)
    assert entry.get("enabled", True) is enabled


@pytest.mark.file("/etc/services")
def test_included_files_are_read_in_order_without_backups(tmp_path: Path) -> None:
    service = "service {0}\n{{\ntype = INTERNAL\nsocket_type = stream\nwait = no\nid = {1}\n}}\n"
    (tmp_path / "d").mkdir()
    for name, identity in (("b", "second"), ("a", "first"), ("c~", "no"), ("d.old", "no")):
        (tmp_path / "d" / name).write_text(service.format("echo", identity))
    (tmp_path / "main").write_text("includedir d\ninclude missing\n")
    entries, notes = xinetd.read(tmp_path / "main")
    assert list(services_of(entries)) == ["first", "second"]
    (note,) = notes
    assert "missing: No such file or directory" in note.text
    assert list(services_of(xinetd.read(tmp_path / "d")[0])) == ["first", "second"]


def test_superd_checks_and_serves_a_migrated_configuration(
    start_superd: Start, tmp_path: Path
) -> None:
    port, other = free_port(), free_port()
    file = tmp_path / "inetd.conf"
    file.write_text(
        f"127.0.0.1:{port} stream tcp nowait nobody /bin/cat cat -u\n"
        "echo dgram udp wait root internal\n"
        "tftp dgram udp wait nobody /bin/cat cat\n"
    )
    done = superd("migrate", "inetd", str(file))
    assert done.returncode == 0
    assert "inetd.conf:2: over udp" in done.stderr
    checked = superd("check", str(written(tmp_path, done.stdout)))
    assert (checked.returncode, checked.stdout) == (0, "configuration OK\n")
    xfile = tmp_path / "xinetd.conf"
    xfile.write_text(
        f"service cat\n{{\ntype = UNLISTED\nsocket_type = stream\nwait = no\nuser = nobody\n"
        f"bind = 127.0.0.1\nport = {other}\nserver = /bin/cat\nonly_from = 127.0.0.1\n}}\n"
    )
    migrated = superd("migrate", "xinetd", str(xfile))
    assert migrated.returncode == 0
    wanted = done.stdout.split("# ")[1]
    served = start_superd(f"#{wanted}\n{migrated.stdout}")
    for number in (port, other):
        assert exchange(connect_tcp(("127.0.0.1", number)), b"hello") == b"hello"
    assert served.counts("cat")["accepted"] == 1


def test_migrating_a_missing_file_or_one_without_services_is_an_error(tmp_path: Path) -> None:
    for dialect in ("inetd", "xinetd"):
        done = superd("migrate", dialect, str(tmp_path / "missing"))
        assert (done.returncode, done.stdout) == (1, "")
        assert "No such file or directory" in done.stderr
        (tmp_path / "empty").write_text("# nothing\n")
        done = superd("migrate", dialect, str(tmp_path / "empty"))
        assert done.returncode == 1
        assert "has no service that superd can serve" in done.stderr
