"""Every mistake in the options of forward is reported with its position, its key and a remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.config.configurations import written
from tests.support.harness import superd

ONE = "tcp://192.0.2.1:80"
TCP, UDP, BOTH = "tcp://127.0.0.1:9901", "udp://127.0.0.1:9901", ["tcp://*:9902", "udp://*:9902"]
STARTS = "expected an address that starts with one of tcp://, udp://, unix://, unixgram://"

# `listen`; the options, with ^ before the mistake; the key; a part of the message
MISTAKES = [
    (TCP, "", "to", "is missing (one target or several: a string, or a table with address and"),
    (TCP, "to = ^[]", "to", "expected an array of at least 1 element, found an empty array"),
    (TCP, "to = ^80", "to", "expected an address such as tcp://10.0.0.5:8080, found 80"),
    (TCP, f'to = ["{ONE}", ^80]', "to[1]", "expected an address such as tcp://10.0.0.5:8080"),
    (TCP, 'to = ^"192.0.2.1"', "to", "expected a host and a port, such as tcp://127.0.0.1:80"),
    (TCP, f'to = ["{ONE}", ^"http://a:1"]', "to[1]", f'{STARTS}, found "http://a:1"'),
    (TCP, 'to = ^"tcp://192.0.2.1:0"', "to", "port 0 cannot be connected to"),
    (TCP, 'to = ^"tcp://0.0.0.0:80"', "to", "expected one address to connect to, not 0.0.0.0"),
    (TCP, 'to = { address = ^"[::1]:99999" }', "to.address", "there is no port 99999"),
    (TCP, f'to = [{{ address = "{ONE}", weight = ^0 }}]', "to[0].weight", "at least 1, found 0"),
    (TCP, f'to = [{{ address = "{ONE}", weight = ^1001 }}]', "to[0].weight", "at most 1000"),
    (TCP, f'to = [{{ address = "{ONE}", ^wieght = 2 }}]', "to[0].wieght", 'you mean "weight"?'),
    (TCP, "to = [^{ weight = 2 }]", "to[0].address", "is missing (tcp://, udp://, unix://"),
    (TCP, f'to = "{ONE}", ^balanse = "first"', "balanse", 'unknown key (did you mean'),
    (TCP, f'to = "{ONE}", balance = ^"sources"', "balance", '(did you mean "source"?)'),
    (TCP, f'to = ^"{TCP}"', "to", f"{TCP} is an address of the service itself"),
    (UDP, 'to = ^"127.0.0.1:9901"', "to", "127.0.0.1:9901 is an address of the service itself"),
    (BOTH, 'to = ^"127.8.8.8:9902"', "to", "127.8.8.8:9902 is an address of the service itself"),
    (BOTH, 'to = ^"[::1]:9902"', "to", "[::1]:9902 is an address of the service itself"),
    (BOTH, 'to = ^"localhost:9902"', "to", "localhost:9902 is an address of the service itself"),
    ("tcp://[::]:9903", 'to = ^"[::1]:9903"', "to", "[::1]:9903 is an address of the service"),
    ("unix:///run/a", 'to = ^"unix:///run/a"', "to", "unix:///run/a is an address of the service"),
    (UDP, f'to = ^"{ONE}"', "to", "no target accepts datagrams, but the service listens on udp"),
    (TCP, 'to = ^"unixgram://@a"', "to", "no target accepts connections, but the service listens"),
    (BOTH, 'to = ^"unix://@a"', "to", "add one that starts with udp:// or unixgram://"),
    (TCP, f'to = ^["{ONE}", "udp://192.0.2.1:80"]', "to", "udp://192.0.2.1:80 would get"),
    (TCP, f'to = "{ONE}", bind-to = ^"::1"', "bind-to", f"::1 is of another family than {ONE}"),
    (TCP, f'to = "{ONE}", bind-to = ^"lo"', "bind-to", "expected an IPv4 or IPv6 address"),
    (TCP, f'to = "{ONE}", bind-to = ^"fe80::1"', "bind-to", "such as [fe80::1%eth0]"),
    (TCP, f'to = "{ONE}", bind-to = ^"224.0.0.1"', "bind-to", "cannot connect from 224.0.0.1"),
    (TCP, 'to = ^"tcp://[fe80::1]:80"', "to", "such as [fe80::1%eth0]"),
    (UDP, 'to = "[::1]:1", proxy-protocol = ^"v1"', "proxy-protocol", "v1 does not support"),
    (TCP, f'to = "{ONE}", proxy-protocol = ^"v3"', "proxy-protocol", 'expected "v1" or "v2"'),
    (UDP, 'to = "[::1]:1", probe = ^{ send = "x" }', "probe", "requires both send and expect"),
    (TCP, f'to = "{ONE}", probe = {{ ^evry = "1s" }}', "probe.evry", '(did you mean "every"?)'),
    (TCP, f'to = "{ONE}", probe = {{ fall = ^0 }}', "probe.fall", "at least 1, found 0"),
    (TCP, f'to = "{ONE}", fail-after = ^-1', "fail-after", "at least 0, found -1"),
    (TCP, f'to = "{ONE}", connect-timeout = ^0', "connect-timeout", "more than 0, found 0"),
    (TCP, f'to = "{ONE}", retry-after = ^"x"', "retry-after", "expected a duration such as"),
]  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The output of `superd check` for all mistakes in one file, without the file's name."""
    text = "".join(
        f'[service.s{number}]\nplugin = "forward"\nlisten = {json.dumps(listen)}\n'
        f"options = {{ {options.replace('^', '')} }}\n"
        for number, (listen, options, *_) in enumerate(MISTAKES)
    )
    file = written(tmp_path_factory.mktemp("mistakes"), text)
    done = superd("check", str(file))
    assert done.returncode == 78
    return [line.removeprefix(f"{file}:") for line in done.stderr.splitlines()]


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_a_mistake_is_reported_at_its_position(report: list[str], number: int) -> None:
    _, options, key, text = MISTAKES[number]
    column = f"options = {{ {options}".find("^") + 1 or 1  # column 1 if a key is missing
    start = f"{number * 4 + 4}:{column}: service.s{number}.options.{key}: "
    found = [line for line in report if line.startswith(start)]
    assert len(found) == 1, [line for line in report if f"service.s{number}." in line]
    assert text in found[0]


def test_a_path_that_is_missing_in_the_jail_is_reported(tmp_path: Path) -> None:
    text = (
        f'[service.web]\nplugin = "forward"\nlisten = "tcp://127.0.0.1:0"\nchroot = "{tmp_path}"\n'
        'options = { to = "unix:///run/app/sock" }\n'
    )
    file = written(tmp_path, text)
    assert superd("check", str(file)).stderr == (
        f"{file}:5:18: service.web.options.to: unix:///run/app/sock cannot be reached"
        f' from the chroot {tmp_path}; set chroot = "", or use an abstract name (unix://@x)\n'
    )
    (tmp_path / "run/app").mkdir(parents=True)
    assert superd("check", str(file)).stdout == "configuration OK\n"


GOOD = """
[service.near]
plugin = "forward"
listen = "tcp://[::]:9904"
options = { to = "tcp://127.0.0.1:9904" }
[service.udp]
plugin = "forward"
listen = ["udp://127.0.0.1:9904", "unixgram://@front"]
options = { to = ["127.0.0.2:9904", "unixgram://@back"], proxy-protocol = "v2" }
[service.probed]
plugin = "forward"
listen = "tcp://127.0.0.1:9905"
[service.probed.options]
bind-to = "127.0.0.9"
to = [{ address = "www.example.org:80", weight = 1000 }, "unix:///nowhere", "unix://@x"]
probe = { every = "1s", timeout = "100ms", send = "PING", expect = "PONG", fall = 1, rise = 1 }
"""


def test_valid_options_are_accepted(tmp_path: Path) -> None:
    done = superd("check", str(written(tmp_path, GOOD)))
    assert (done.stdout, done.stderr) == ("configuration OK\n", "")
