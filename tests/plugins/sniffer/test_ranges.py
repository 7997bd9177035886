"""A sniffer on a range of ports, some of which other services and processes use."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.plugins.sniffer.knocking import Knocks, knock, send_udp
from tests.support.harness import Superd, ask_udp, exchange, failed_start
from tests.support.ports import free_range

DAEMON = "[daemon]\nworkers = 1\n"


def sniffer(listen: str, name: str = "sniffer") -> str:
    """Return an entry; `listen` has the addresses without brackets."""
    return (
        f'[service.{name}]\nplugin = "sniffer"\nlisten = [{listen}]\n'
        f'options = {{ capture = {{}}, output = "{{directory}}/{name}.out" }}\n'
    )


def echo(listen: str, name: str = "echo") -> str:
    return f'[service.{name}]\nplugin = "echo"\nlisten = [{listen}]\n'


@pytest.fixture
def low() -> int:
    """The first of ten free ports."""
    return free_range(10)


def is_echo(port: int, host: str = "127.0.0.1") -> bool:
    with socket.create_connection((host, port), 15) as client:
        return exchange(client, b"real") == b"real"


HOSTS = [("*", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("*", "*"), ("127.0.0.1", "*")]


@pytest.mark.parametrize("is_first", [True, False])
def test_a_service_with_an_explicit_port_keeps_it(start: Start, is_first: bool) -> None:
    toml, firsts = DAEMON, []
    for number, (wide, narrow) in enumerate(HOSTS):
        low = free_range(10)
        firsts.append(low)
        ends = f"{low}-{low + 9}"
        entries = [
            sniffer(f'"tcp://{wide}:{ends}", "udp://{wide}:{ends}"', f"sniffer-{number}"),
            echo(f'"tcp://{narrow}:{low + 4}", "udp://{narrow}:{low + 5}"', f"echo-{number}"),
        ]
        toml += "".join(entries if is_first else entries[::-1])
    served = start(toml)
    assert " warning: " not in served.log()
    for number, low in enumerate(firsts):
        knocks = Knocks(served, f"sniffer-{number}")
        assert is_echo(low + 4), HOSTS[number]
        assert ask_udp(("127.0.0.1", low + 5), b"real") == b"real"
        for port in (low, low + 3, low + 5, low + 9):
            knock(("127.0.0.1", port), b"x")
        for port in (low, low + 4, low + 6, low + 9):
            send_udp(("127.0.0.1", port), b"x")
        found = sorted((line["transport"], line["port"] - low) for line in knocks.next(8))
        assert found == [("tcp", n) for n in (0, 3, 5, 9)] + [("udp", n) for n in (0, 4, 6, 9)]


def test_the_wildcard_accepts_clients_of_other_addresses(start: Start, low: int) -> None:
    served = start(
        DAEMON + sniffer(f'"tcp://*:{low}-{low + 9}"') + echo(f'"tcp://127.0.0.1:{low + 4}"')
    )
    knocks = Knocks(served, "sniffer")
    assert is_echo(low + 4)
    knock(("127.0.0.2", low + 4))
    (line,) = knocks.next()
    assert line["local"] == f"127.0.0.2:{low + 4}"


@contextlib.contextmanager
def taken(*ports: int, kind: int = socket.SOCK_STREAM) -> Iterator[None]:
    """Bind ports, as another process would."""
    with contextlib.ExitStack() as stack:
        for port in ports:
            sock = stack.enter_context(socket.socket(socket.AF_INET, kind))
            sock.bind(("127.0.0.1", port))
            if kind == socket.SOCK_STREAM:
                sock.listen()
        yield


def notices(superd: Superd) -> list[str]:
    return [
        line
        for line in superd.log().splitlines()
        if "left out, as other processes listen there" in line
    ]


def test_ports_of_other_processes_are_left_out_and_logged_once(start: Start, low: int) -> None:
    others = range(low + 1, low + 8)
    with taken(*others), taken(low, kind=socket.SOCK_DGRAM):
        listen = f'"tcp://*:{low}-{low + 9}", "udp://*:{low}-{low + 1}"'
        served = start(DAEMON + sniffer(listen))
        knocks = Knocks(served, "sniffer")
        for port in (low, low + 8, low + 9):
            knock(("127.0.0.1", port))
        send_udp(("127.0.0.1", low + 1), b"x")
        assert sorted(line["port"] for line in knocks.next(4)) == [low, low + 1, low + 8, low + 9]
        (notice,) = notices(served)
        assert "service.sniffer: left out, as other processes listen there: tcp://" in notice
        assert notice.endswith(f"tcp://0.0.0.0:{low + 1}-{low + 7} (7 ports), udp://0.0.0.0:{low}")
        done = served.run("reload")
        assert (done.returncode, done.stderr) == (0, "")  # that is known already
    # the next reload binds ports that have become free
    assert served.run("reload").stderr == ""
    knock(("127.0.0.1", low + 4))
    (line,) = knocks.next()
    assert line["port"] == low + 4


def reload(superd: Superd, toml: str) -> str:
    """Reload another configuration; return the output."""
    superd.toml = toml.replace("{directory}", str(superd.directory))
    superd.write()
    done = superd.run("reload")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("wide", ["*", "127.0.0.1"])
def test_a_reload_moves_a_port_to_a_service_and_back(start: Start, low: int, wide: str) -> None:
    ends = f"{low}-{low + 9}"
    plain = DAEMON + sniffer(f'"tcp://{wide}:{ends}", "udp://{wide}:{ends}"')
    served = start(plain)
    knocks = Knocks(served, "sniffer")
    knock(("127.0.0.1", low + 4), b"before")
    knocks.next()
    real = plain + echo(f'"tcp://127.0.0.1:{low + 4}", "udp://127.0.0.1:{low + 4}"')
    assert "echo: added" in reload(served, real)
    assert is_echo(low + 4)
    assert ask_udp(("127.0.0.1", low + 4), b"real") == b"real"
    knock(("127.0.0.1", low + 5), b"beside")
    assert [(line["port"], line["text"]) for line in knocks.next()] == [(low + 5, "beside")]
    assert "echo: removed" in reload(served, plain)
    knock(("127.0.0.1", low + 4), b"after")
    send_udp(("127.0.0.1", low + 4), b"after")
    found = [(line["port"], line["text"]) for line in knocks.next(2)]
    assert found == [(low + 4, "after")] * 2


def test_a_connection_survives_the_loss_of_its_port(start: Start, low: int) -> None:
    plain = DAEMON + sniffer(f'"tcp://127.0.0.1:{low}-{low + 9}"')
    served = start(plain)
    knocks = Knocks(served, "sniffer")
    with socket.create_connection(("127.0.0.1", low + 4), 15) as client:
        client.sendall(b"half")
        reload(served, plain + echo(f'"tcp://127.0.0.1:{low + 4}"'))
        client.sendall(b"whole")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        assert is_echo(low + 4)
    assert [line["text"] for line in knocks.next()] == ["halfwhole"]


MISTAKES = [
    ('"tcp://127.0.0.1:20000-29999"', '"tcp://127.0.0.1:29990-40000"', 29990),
    ('"tcp://*:20000-29999"', '"tcp://*:29999-30000"', 29999),
]


@pytest.mark.parametrize(("one", "other", "port"), MISTAKES)
def test_overlapping_ranges_are_one_mistake(
    tmp_path: Path, one: str, other: str, port: int
) -> None:
    code, output = checked(tmp_path, sniffer(one) + sniffer(other, "second"))
    assert code == 78
    repeated = f":{port} is listened on by service.sniffer already"
    assert re.fullmatch(rf".* service\.second\.listen\[0\]: tcp://[0-9.]+{repeated}\n", output)


def test_an_address_in_two_ranges_is_a_mistake(tmp_path: Path) -> None:
    listen = '"tcp://127.0.0.1:20000-20010", "tcp://127.0.0.1:20010-20020"'
    code, output = checked(tmp_path, sniffer(listen))
    assert code == 78
    assert "tcp://127.0.0.1:20010 is listened on by service.sniffer already" in output
    assert output.count("\n") == 1


def checked(directory: Path, toml: str) -> tuple[int, str]:
    """Return exit code and errors of `superd check`."""
    one = Superd(directory, toml.replace("{directory}", str(directory)))
    one.write()
    done = one.run("check")
    return done.returncode, done.stderr


@pytest.mark.parametrize("wide", ["*", "127.0.0.1"])
def test_a_range_without_any_free_port_is_an_error(tmp_path: Path, low: int, wide: str) -> None:
    toml = sniffer(f'"tcp://{wide}:{low}-{low + 2}"').replace("{directory}", str(tmp_path))
    with taken(*range(low, low + 3)), contextlib.ExitStack() as stack:
        for port in range(low, low + 3) if wide == "*" else ():
            sock = stack.enter_context(socket.socket(socket.AF_INET6))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(("::", port))
            sock.listen()
        _, output = failed_start(tmp_path, toml)
    ends = f"tcp://{wide}:{low}-{low + 2} (3 ports)"
    assert f"cannot listen on {ends}: other processes listen there" in output


@pytest.mark.tool("prlimit")
def test_more_addresses_than_descriptors_are_one_error(tmp_path: Path) -> None:
    toml = sniffer('"tcp://127.0.0.1:20000-22999"').replace("{directory}", str(tmp_path))
    code, output = failed_start(tmp_path, toml, "prlimit", "--nofile=1000:1000")
    assert code == 1
    assert (
        "superd may have at most 1000 open files, too few for this address and all later ones;"
        " raise that limit (LimitNOFILE=, ulimit -n)" in output
    )
    assert output.count("tcp://") == 1
