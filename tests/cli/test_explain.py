"""`superd explain`: whether a client would be admitted, and by which line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.configurations import written
from tests.conftest import Start
from tests.support.harness import superd

TOML = """\
[defaults]
deny = "10.1.0.0/16"

[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:7"
allow = ["192.0.2.0/24",
    "10.0.0.0/8", "2001:db8::/32",
    "user:root"]
allow-file = "friends"
access-times = ["mon-fri 08:00-18:00", "22:00-06:00"]
time-zone = "UTC"

[service.open]
plugin = "echo"
listen = "tcp://127.0.0.1:8"

[service.shut]
plugin = "echo"
listen = "tcp://127.0.0.1:9"
allow = []
"""

AT = "2026-11-27 12:00+00:00"  # a Friday
OPEN = '; access-times "mon-fri 08:00-18:00", FILE:11'

CASES = [
    ("echo 192.0.2.1", 0, f'admitted: allow "192.0.2.0/24", FILE:7{OPEN}'),
    ("echo 10.1.2.3", 1, 'refused (access): deny "10.1.0.0/16", FILE:2'),
    ("echo 10.2.3.4", 0, f'admitted: allow "10.0.0.0/8", FILE:8{OPEN}'),
    ("echo ::ffff:10.2.3.4", 0, f'admitted: allow "10.0.0.0/8", FILE:8{OPEN}'),
    ("echo 2001:db8::1", 0, f'admitted: allow "2001:db8::/32", FILE:8{OPEN}'),
    ("echo 198.51.100.7", 0, f'admitted: allow "198.51.100.0/24", LIST:2{OPEN}'),
    ("echo 203.0.113.1", 1, "refused (access): allow has no entry for 203.0.113.1, FILE:7"),
    ("echo user:root", 0, f'admitted: allow "user:0", FILE:9{OPEN}'),
    ("echo user:12345", 1, "refused (access): allow has no entry for user:12345, FILE:7"),
    ("open 203.0.113.1", 0, "admitted: no rule refuses it"),
    ("open 10.1.2.3", 1, 'refused (access): deny "10.1.0.0/16", FILE:2'),
    ("shut 203.0.113.1", 1, "refused (access): allow has no entry for 203.0.113.1, FILE:21"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "friends").write_text("# friends\n198.51.100.0/24\n")
    return written(tmp_path, TOML)


@pytest.mark.parametrize(("asked", "code", "expected"), CASES)
def test_the_deciding_rule_is_printed_with_its_line(
    file: Path, asked: str, code: int, expected: str
) -> None:
    done = superd("explain", "-c", str(file), *asked.split(), "--at", AT)
    assert done.stderr == ""
    assert done.returncode == code
    friends = str(file.parent / "friends")
    assert done.stdout.strip().replace(friends, "LIST").replace(str(file), "FILE") == expected


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2026-11-28 12:00+00:00", "refused (access-times): the service is open "),
        ("2026-11-28 23:00+00:00", 'admitted: allow "10.0.0.0/8"'),
        ("2026-11-27 18:00+00:00", "refused (access-times): the service is open "),
    ],
)
def test_the_time_can_be_chosen(file: Path, at: str, expected: str) -> None:
    done = superd("explain", "-c", str(file), "echo", "10.2.3.4", "--at", at)
    assert done.stdout.startswith(expected)


WRONG = [
    ("ecoh 10.1.1.1", 'there is no service "ecoh" (did you mean "echo"?)'),
    ("echo here", 'expected an address, or user:NAME for a unix socket, found "here"'),
    ("echo user:nosuchuser", 'there is no user "nosuchuser"'),
    ("echo 10.1.1.1 --at noon", '--at: expected a time such as "2026-11-25 18:30", found "noon"'),
]


@pytest.mark.parametrize(("asked", "expected"), WRONG)
def test_wrong_arguments_are_an_error(file: Path, asked: str, expected: str) -> None:
    done = superd("explain", "-c", str(file), *asked.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_wrong_configuration_is_reported_as_by_check(tmp_path: Path) -> None:
    file = written(tmp_path, TOML.replace("192.0.2.0/24", "192.0.2.1/24"))
    (tmp_path / "friends").write_text("")
    done = superd("explain", "-c", str(file), "echo", "10.1.1.1")
    assert done.returncode == 78
    assert "superd.toml:7:10: service.echo.allow[0]: " in done.stderr


def test_bans_overrides_and_a_stale_file_of_the_daemon_are_reported(
    start_superd: Start,
) -> None:
    served = start_superd(
        """
        [service.echo]
        plugin = "echo"
        listen = "tcp://127.0.0.1:0"

        [service.off]
        enabled = false
        plugin = "echo"
        listen = "tcp://127.0.0.1:0"
        """
    )

    def explained(service: str) -> tuple[int, str, str]:
        done = served.run("explain", service, "192.0.2.1")
        return done.returncode, done.stdout, done.stderr

    admitted = "admitted: no rule refuses it\n"
    line = served.file.read_text().partition("enabled")[0].count("\n") + 1
    assert explained("off") == (1, f"not served: disabled, {served.file}:{line}\n", "")
    assert explained("echo") == (0, admitted, "")
    assert served.run("enable", "off").returncode == 0
    assert served.run("disable", "echo").returncode == 0
    assert explained("off") == (0, admitted, "")
    assert explained("echo") == (1, "not served: disabled, by the operator\n", "")
    served.toml += 'deny = "192.0.2.1"\n'
    served.write()
    text = "superd: the daemon has not loaded the current files, by which this decides;"
    code, out, notice = explained("off")
    assert (code, notice) == (1, f"{text} run `superd reload`\n")
    assert out.startswith('refused (access): deny "192.0.2.1"')
    assert served.run("reload").returncode == 0
    assert explained("off") == (1, out, "")


def test_rules_for_a_program_that_accepts_its_clients_itself_are_reported_as_unused(
    tmp_path: Path,
) -> None:
    text = '[service.x]\nplugin = "exec"\nwait = true\nlisten = "tcp://127.0.0.1:0"\n'
    file = written(tmp_path, f'{text}options.command = "/bin/cat"\ndeny = "192.0.2.1"\n')
    for command in (("explain", "-c", str(file), "x", "192.0.2.1"), ("check", str(file))):
        done = superd(*command)
        assert "with wait = true the program accepts its clients itself, whatever" in done.stderr
        assert done.stderr.endswith(": x\n")
