"""`superd run`: what it prints, what it requires, and what it can do without."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from superd.cli.files import runtime_directory
from superd.cli.serve import MAX_SHOWN_ADDRESSES, line_to_try
from superd.errors import SuperdError
from superd.net.addresses import parse_addresses
from superd.process.isolated import run_isolated
from tests.conftest import Start
from tests.support import proc
from tests.support.daemons import without_own_directories
from tests.support.harness import (
    EVENT_TIMEOUT,
    Superd,
    command,
    exchange,
    failed_start,
    read_lines,
    until,
)
from tests.support.ports import OWN_PORT, own_host

ECHO = """
[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
"""


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("tcp://127.0.0.1:7", "tcp://127.0.0.1:7"),
        ("udp://127.0.0.1:7", "udp://127.0.0.1:7"),
        ("tcp://[::1]:7", "'tcp://[::1]:7'"),
        ("tcp://0.0.0.0:7", "tcp://127.0.0.1:7"),
        ("udp://[::]:7", "'udp://[::1]:7'"),
        ("unix:///run/echo", "unix:///run/echo"),
        ("unixgram:///run/my echo", "'unixgram:///run/my echo'"),
        ("unixpacket:///run/echo", "unixpacket:///run/echo"),
        ("unix://@echo", "unix://@echo"),
        ("unixgram://@echo", "unixgram://@echo"),
    ],
)
def test_each_kind_of_address_has_a_line_to_try(
    monkeypatch: pytest.MonkeyPatch, address: str, target: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/superd/bin/superd", "run"])
    line = line_to_try(parse_addresses(address)[0])
    assert line == f"/opt/superd/bin/superd connect {target}"


def test_the_line_to_try_runs_superd_as_the_operator_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = parse_addresses("tcp://127.0.0.1:7")[0]
    installed = tmp_path / "superd"
    installed.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(installed)])
    assert line_to_try(address) == f"{installed} connect tcp://127.0.0.1:7"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert line_to_try(address) == "superd connect tcp://127.0.0.1:7"
    monkeypatch.setattr(sys, "argv", ["/somewhere/superd/__main__.py"])
    assert line_to_try(address) == f"{sys.executable} -m superd connect tcp://127.0.0.1:7"


def test_every_address_is_printed_with_a_line_that_works_and_ready_comes_last(
    start_superd: Start, tmp_path: Path
) -> None:
    addresses = (
        "tcp://127.0.0.1:0", "udp://127.0.0.1:0", "tcp://[::1]:0", "tcp://*:0",
        f"unix://{tmp_path}/stream", f"unixpacket://{tmp_path}/packet", f"unix://@{tmp_path}",
        f"unixgram://{tmp_path}/gram", f"unixgram://@{tmp_path}/gram",
    )  # fmt: skip
    superd = start_superd(f'[service.echo]\nplugin = "echo"\nlisten = {list(addresses)}\n')
    first, *lines, last = superd.announced
    assert re.fullmatch(rf"superd [0-9.]+: {superd.file}", first)
    assert last == "ready"
    assert len(lines) == len(addresses) + 1  # "*" is two
    for line in lines:
        assert line.startswith("echo  ")
        tried = subprocess.Popen(
            ["sh", "-c", f"exec {line.partition('try: ')[2]}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert tried.stdin is not None
        assert tried.stdout is not None
        tried.stdin.write(b"hello\n")
        tried.stdin.flush()
        try:
            assert tried.stdout.read(6) == b"hello\n", line
        finally:
            tried.kill()
            tried.communicate()


def test_of_a_range_only_the_first_addresses_are_printed(start_superd: Start) -> None:
    listen = f"tcp://{own_host()}:{OWN_PORT}-{OWN_PORT + 99}"
    superd = start_superd(ECHO.replace("tcp://127.0.0.1:0", listen))
    assert len(superd.announced) == 1 + MAX_SHOWN_ADDRESSES + 1 + 1
    assert superd.announced[-2].split() == [
        "echo",
        "...",
        "and",
        str(100 - MAX_SHOWN_ADDRESSES),
        "more",
    ]


def test_superd_serves_without_a_reader_of_its_output(tmp_path: Path) -> None:
    for output in ("/dev/full", "a pipe whose reader has gone"):
        reader, writer = os.pipe()
        os.close(reader)
        superd = Superd(tmp_path, ECHO)
        superd.write()
        with open(output if output == "/dev/full" else writer, "w") as stdout:
            process = subprocess.Popen(
                command("run", "-c", str(superd.file)),
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert process.stderr is not None
        for line in read_lines(process.stderr):
            if "info: ready" in line:
                break
        (address,) = superd.answer()["services"][0]["listen"]
        port = int(address.rpartition(":")[2])
        assert exchange(socket.create_connection(("127.0.0.1", port)), b"hello") == b"hello"
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=EVENT_TIMEOUT)
        assert process.returncode == 0
        assert "Traceback" not in rest
        assert "Error" not in rest


def is_served(superd: Superd) -> bool:
    try:
        return bool(superd.workers())
    except SuperdError:
        return False


def test_no_socket_gets_the_number_of_a_standard_descriptor(tmp_path: Path) -> None:
    superd = Superd(tmp_path, ECHO)
    line = command("run", "-c", str(superd.write()))
    process = subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *line])
    try:
        until(lambda: (tmp_path / "pid").exists() and is_served(superd), "a worker that is ready")
        for pid in (superd.pid, *proc.children(superd.pid)):
            found = {one.number: one.target for one in proc.descriptors(pid)}
            targets = [found[number].partition(":")[0] for number in range(3)]
            output = "/dev/null" if pid == superd.pid else "pipe"  # a worker's leads to the master
            assert targets == ["/dev/null", output, output]
    finally:
        process.terminate()
        code = process.wait(EVENT_TIMEOUT)
    assert code == 0


def test_an_address_in_use_is_named_and_the_exit_code_is_69(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        message = failed_start(tmp_path, ECHO.replace("tcp://127.0.0.1:0", address))
    code, text = message
    assert code == 69
    assert text.startswith(f"superd: {tmp_path}/superd.toml:")
    assert (
        f": service.echo.listen: cannot listen on {address}: the address is in use by process"
        f" {os.getpid()} (" in text
    )


def test_a_configured_pid_file_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    superd = Superd(tmp_path, ECHO)
    superd.write()
    text = superd.file.read_text().replace(f"{tmp_path}/pid", f"{tmp_path}/file/pid")
    superd.file.write_text(text)
    done = superd.run("run")
    assert done.returncode == 1
    message = f"cannot create the directory {tmp_path}/file: File exists"
    assert message in done.stderr


@pytest.mark.root
@pytest.mark.tool("unshare", "mount")
def test_superd_runs_on_a_read_only_file_system(tmp_path: Path) -> None:
    file = tmp_path / "superd.toml"
    file.write_text(ECHO)
    mounts = "for each in /run /var/lib; do mount -t tmpfs -o ro tmpfs $each || exit; done"
    run = command("run", "-c", str(file))
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", f'{mounts}; exec "$@"', "sh", *run],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=without_own_directories(),
    )
    assert process.stdout is not None
    address = None
    for line in read_lines(process.stdout):
        if line == "ready":
            break
        address = re.search(r"127\.0\.0\.1:(\d+)", line)
    assert address
    connection = socket.create_connection(("127.0.0.1", int(address[1])))
    assert exchange(connection, b"hello") == b"hello"
    process.terminate()
    _, log = process.communicate(timeout=EVENT_TIMEOUT)
    assert process.returncode == 0
    for key in ("pid-file", "control-socket"):
        why = "cannot create the directory /run/superd: Read-only file system"
        assert f"warning: no {key}: {why}; [daemon] {key} may name another path\n" in log


@pytest.mark.root
def test_a_user_without_a_home_has_a_runtime_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY")

    def as_unknown_user() -> str:
        for name in ("HOME", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
            os.environ.pop(name, None)
        os.setresuid(54_321, 54_321, 54_321)
        return str(runtime_directory())

    outcome = run_isolated({"user": as_unknown_user})["user"]
    assert outcome.result == "/run/superd", outcome.failure


def test_an_interrupted_start_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    superd = Superd(tmp_path, ECHO.replace("tcp://127.0.0.1:0", f"unix://{path}"))
    line = command("run", "-c", str(superd.write()))
    for number, code in ((signal.SIGTERM, (143, 0)), (signal.SIGINT, (130, 0))):
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("superd ")  # the next thing is to listen
        process.send_signal(number)
        _, log = process.communicate(timeout=EVENT_TIMEOUT)
        assert process.returncode in code
        assert "Traceback" not in log
        assert {entry.name for entry in tmp_path.iterdir()} == {"superd.toml"}
