"""The sinks of the log: the lines that they write, and that none of them blocks the master."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from superd.errors import SuperdError
from superd.master.logs.log import Log
from superd.master.logs.sinks import STDERR
from superd.observe.records import Record

LogTo = Callable[..., Log]

NOT_BLOCKED = 5.0  # seconds; a write that waits for its reader would never end


@pytest.fixture
def log_to() -> Iterator[LogTo]:
    """Return a function that makes a log; all logs are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(*sinks: str | Path, form: str = "text", syslog: Path | None = None) -> Log:
            log = Log([str(sink) for sink in sinks], form, str(syslog))
            stack.callback(log.close)
            return log

        yield make


@contextlib.contextmanager
def standard_error(descriptor: int) -> Iterator[None]:
    """Replace standard error by `descriptor`."""
    kept = os.dup(STDERR)
    os.dup2(descriptor, STDERR)
    try:
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    with open(reader, closefd=True), open(writer, "w", closefd=True):
        yield reader, writer


def available(reader: int) -> bytes:
    """Read what is available, without waiting for more."""
    parts = []
    while select.select([reader], [], [], 0)[0]:
        part = os.read(reader, 1 << 20)
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def test_standard_error_gets_lines_of_text(pipe: tuple[int, int], log_to: LogTo) -> None:
    reader, writer = pipe
    with standard_error(writer):
        log = log_to("stderr")
        log.info("hello", "echo")
        log.error("alas")
    first, second = available(reader).decode().splitlines()
    assert first.endswith(f"superd[{os.getpid()}] info: hello service=echo")
    assert second.endswith("error: alas")


def test_a_file_gets_lines_of_json(tmp_path: Path, log_to: LogTo) -> None:
    log = log_to(tmp_path / "log", form="json")
    log.warning("hello\nworld", "echo")
    (line,) = (tmp_path / "log").read_text().splitlines()
    data = json.loads(line)
    assert (data["level"], data["message"], data["service"], data["pid"]) == (
        "warning",
        "hello\nworld",
        "echo",
        os.getpid(),
    )
    assert abs(data["time"] - time.time()) < 60


def test_all_sinks_get_all_records(tmp_path: Path, log_to: LogTo) -> None:
    paths = [tmp_path / name for name in "abc"]
    log = log_to(*paths)
    log.info("hello")
    assert {path.read_text().count("hello") for path in paths} == {1}


def test_other_users_cannot_read_a_log_file_and_it_is_appended_to(
    tmp_path: Path, log_to: LogTo
) -> None:
    path = tmp_path / "log"
    for word in ("first", "second"):
        log_to(path).info(word)
    assert [line.split()[-1] for line in path.read_text().splitlines()] == ["first", "second"]
    assert path.stat().st_mode & 0o007 == 0


def test_a_renamed_file_is_reopened_on_request(tmp_path: Path, log_to: LogTo) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    log = log_to(path)
    log.info("one")
    path.rename(old)
    log.info("two")
    log.reopen()
    log.info("three")
    assert old.read_text().count("\n") == 2
    reopened, three = path.read_text().splitlines()
    assert reopened.endswith("info: log files reopened")
    assert three.endswith("three")


def test_a_file_that_cannot_be_reopened_stays_in_use(tmp_path: Path, log_to: LogTo) -> None:
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs" / "log"
    log = log_to(path)
    (tmp_path / "logs").rename(tmp_path / "old")
    log.reopen()
    log.info("after")
    lines = (tmp_path / "old" / "log").read_text().splitlines()
    assert (
        "error: log file not reopened, the old one stays in use: No such file or directory"
        in lines[0]
    )
    assert lines[1].endswith("after")


@pytest.mark.parametrize("name", ["", "directory", "nowhere/log", "pipe"])
def test_an_error_names_a_file_that_cannot_be_opened(
    tmp_path: Path, name: str, log_to: LogTo
) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")  # without a reader
    with pytest.raises(SuperdError, match="cannot log to "):
        log_to(tmp_path / name)


def test_lines_lost_to_a_full_disk_are_only_counted(log_to: LogTo) -> None:
    log = log_to("/dev/full")
    for _ in range(100):
        log.info("hello")
    assert log.failures == 100


def test_a_sink_that_fails_does_not_affect_other_sinks(tmp_path: Path, log_to: LogTo) -> None:
    log = log_to("/dev/full", tmp_path / "log")
    log.info("hello")
    assert "hello" in (tmp_path / "log").read_text()


def test_lines_to_a_pipe_without_a_reader_are_counted(pipe: tuple[int, int], log_to: LogTo) -> None:
    reader, writer = pipe
    with standard_error(writer):
        log = log_to("stderr")
        os.dup2(os.open(os.devnull, os.O_RDONLY), reader)
        log.info("hello")
    assert log.failures == 1


def test_lines_to_a_closed_standard_error_are_counted(tmp_path: Path, log_to: LogTo) -> None:
    with open(tmp_path / "log", "w") as file, standard_error(file.fileno()):
        log = log_to("stderr")
        os.close(STDERR)
        log.info("hello")
    assert log.failures == 1


@pytest.mark.parametrize("kind", ["pipe", "stream socket", "datagram socket"])
def test_a_reader_that_stops_does_not_block_the_log_and_gets_the_number_of_lost_lines(
    kind: str, log_to: LogTo
) -> None:
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        style = socket.SOCK_STREAM if kind == "stream socket" else socket.SOCK_DGRAM
        reader, writer = (end.detach() for end in socket.socketpair(socket.AF_UNIX, style))
    with open(reader, "rb"), open(writer, "wb"), standard_error(writer):
        log = log_to("stderr")
        started = time.monotonic()
        while log.failures < 1000:
            log.info("x" * 1000)
        assert time.monotonic() - started < NOT_BLOCKED
        available(reader)
        log.info("back again")
        text = available(reader).decode()
    assert "1000 log records were lost" in text
    assert text.endswith("back again\n")


@pytest.mark.terminal
def test_a_stopped_terminal_does_not_block_the_log(log_to: LogTo) -> None:
    import termios

    controller, terminal = os.openpty()
    with open(controller, "rb", buffering=0), open(terminal, "wb", buffering=0):
        with standard_error(terminal):
            log = log_to("stderr")
        termios.tcflow(terminal, termios.TCOOFF)  # as Ctrl-S does
        started = time.monotonic()
        for _ in range(1000):
            log.info("x" * 1000)
        assert time.monotonic() - started < NOT_BLOCKED
        assert log.failures
        termios.tcflow(terminal, termios.TCOON)


def test_other_writers_of_a_shared_pipe_still_block(pipe: tuple[int, int], log_to: LogTo) -> None:
    with standard_error(pipe[1]):
        log_to("stderr").info("hello")
        assert os.get_blocking(STDERR)
    assert os.get_blocking(pipe[1])


def test_the_line_after_a_truncated_line_is_complete(pipe: tuple[int, int], log_to: LogTo) -> None:
    reader, writer = pipe
    with standard_error(writer):
        log = log_to("stderr")
        detail = tuple(["y" * 2000] * 60)  # more than fits into the pipe
        log.write(Record("error", "long", detail=detail))
        assert log.failures == 1
        cut = available(reader)
        assert not cut.endswith(b"\n")
        log.info("next")
        lines = (cut + available(reader)).decode().splitlines()
    assert lines[-1].endswith("info: next")
    assert "1 log records were lost" in lines[-2]


class Syslog:
    """A log daemon: it receives datagrams."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(NOT_BLOCKED)
        self.socket.bind(str(path))
        self.path = path

    def line(self) -> str:
        return self.socket.recv(65536).decode()

    def stop(self) -> None:
        self.socket.close()
        self.path.unlink()


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[Syslog]:
    daemon = Syslog(tmp_path / "syslog")
    yield daemon
    daemon.socket.close()


def test_syslog_gets_facility_severity_and_name(syslog: Syslog, log_to: LogTo) -> None:
    log = log_to("syslog", syslog=syslog.path)
    log.info("hello", "echo")
    line = syslog.line()
    assert line.startswith("<30>")  # daemon.info
    assert line.endswith(f" superd[{os.getpid()}]: info: hello service=echo")
    log.error("alas")
    assert syslog.line().startswith("<27>")  # daemon.err
    log.write(Record("error", "failed", detail=("line 1", "line 2")))
    assert [syslog.line().rpartition("error: ")[2] for _ in range(3)] == [
        "failed",
        "| line 1",
        "| line 2",
    ]


def test_syslog_can_carry_json(syslog: Syslog, log_to: LogTo) -> None:
    log_to("syslog", form="json", syslog=syslog.path).warning("hello")
    head, brace, rest = syslog.line().partition("{")
    assert head.startswith("<28>")
    assert json.loads(brace + rest)["message"] == "hello"


def test_syslog_is_reconnected_after_its_restart(syslog: Syslog, log_to: LogTo) -> None:
    log = log_to("syslog", syslog=syslog.path)
    syslog.stop()
    log.info("this is lost")
    assert log.failures == 1
    again = Syslog(syslog.path)
    log.info("hello")
    assert again.line().endswith("warning: 1 log records were lost")
    assert again.line().endswith("info: hello")
    again.stop()


def test_a_syslog_that_does_not_read_does_not_block_the_log(syslog: Syslog, log_to: LogTo) -> None:
    log = log_to("syslog", syslog=syslog.path)
    started = time.monotonic()
    while log.failures < 1000:
        log.info("hello")
    assert time.monotonic() - started < NOT_BLOCKED


def test_an_error_names_a_syslog_that_does_not_exist(tmp_path: Path, log_to: LogTo) -> None:
    with pytest.raises(SuperdError, match="cannot log to syslog: No such file"):
        log_to("syslog", syslog=tmp_path / "nowhere")


def event(kind: str = "closed", /, **more: Any) -> bytes:
    data = {"time": 1700000000.5, "pid": 7, "service": "echo", "event": kind, "conn": "1-2"}
    return json.dumps({**data, "peer": "127.0.0.1:5", **more}).encode() + b"\n"


def test_events_can_have_their_own_sink_and_form(tmp_path: Path) -> None:
    log = Log(
        [str(tmp_path / "log")], "text",
        record_sinks=[str(tmp_path / "records")], record_format="json",
    )  # fmt: skip
    log.info("general")
    log.write_events(event() + event("accepted"))
    log.close()
    assert (tmp_path / "records").read_bytes() == event() + event("accepted")
    assert (tmp_path / "log").read_text().count("\n") == 1


def test_events_go_to_the_sinks_of_the_log_by_default(tmp_path: Path, log_to: LogTo) -> None:
    log = log_to(tmp_path / "log")
    log.write_events(event(end="client"))
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.endswith("superd[7] info: closed service=echo conn=1-2 peer=127.0.0.1:5 end=client")


def test_a_line_that_was_lost_completely_leaves_no_empty_line(
    pipe: tuple[int, int], log_to: LogTo
) -> None:
    reader, writer = pipe
    with standard_error(writer):
        log = log_to("stderr", form="json")
        while not log.failures:
            log.write_events(event())
        received = available(reader)
        log.write_events(event())
        received += available(reader)
    assert b"" not in received.splitlines()


def test_general_records_have_xinetds_form_too(tmp_path: Path, log_to: LogTo) -> None:
    log_to(tmp_path / "log", form="xinetd").warning("hello", "echo")
    line = (tmp_path / "log").read_text()
    stamp, _, rest = line.partition(" ")
    assert time.strptime(stamp, "%y/%m/%d@%H:%M:%S:")
    assert rest == f"superd[{os.getpid()}]: WARNING: hello service=echo\n"


def test_events_in_xinetds_form_have_xinetds_name_in_syslog(syslog: Syslog, log_to: LogTo) -> None:
    log = log_to("syslog", form="xinetd", syslog=syslog.path)
    log.write_events(event("refused", reason="access"))
    assert syslog.line().endswith(" xinetd[7]: FAIL: echo address from=127.0.0.1")
    log_to("syslog", syslog=syslog.path).write_events(event("refused", reason="access"))
    assert syslog.line().endswith(
        " superd[7]: refused service=echo conn=1-2 peer=127.0.0.1:5 reason=access"
    )


def fields(datagram: bytes) -> dict[str, str]:
    """Read a datagram of the journal's native protocol."""
    found = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        if b"=" in line:
            key, _, value = line.partition(b"=")
        else:
            length = int.from_bytes(rest[:8], "little")
            key, value, rest = line, rest[8 : 8 + length], rest[9 + length :]
        found[key.decode()] = value.decode()
        datagram = rest
    return found


def test_the_journal_gets_a_field_for_each_value(syslog: Syslog) -> None:
    log = Log(["journal"], "text", journal_socket=str(syslog.path))
    log.write(Record("error", "failed", service="echo", detail=("line 1", "line 2")))
    received = fields(syslog.socket.recv(65536))
    assert received["MESSAGE"] == "failed\nline 1\nline 2"
    assert (received["PRIORITY"], received["SYSLOG_IDENTIFIER"]) == ("3", "superd")
    assert received["SUPERD_SERVICE"] == "echo"
    log.write(Record("error", "\x1b[2J\nMESSAGE=forged", peer="@a\nMESSAGE=forged"))
    received = fields(syslog.socket.recv(65536))
    assert received["MESSAGE"] == r"\x1b[2J\nMESSAGE=forged"
    assert received["SUPERD_PEER"] == "@a\nMESSAGE=forged"
    log.write_events(event(duration=1.25, end="client", **{"in": 5, "out": 6}))
    received = fields(syslog.socket.recv(65536))
    assert received["MESSAGE"].startswith("closed service=echo conn=1-2")
    assert received["SYSLOG_PID"] == "7"
    wanted = {
        "EVENT": "closed", "CONNECTION": "1-2", "PEER": "127.0.0.1:5", "END": "client",
        "DURATION_USEC": "1250000", "BYTES_IN": "5", "BYTES_OUT": "6",
    }  # fmt: skip
    assert {key: received[f"SUPERD_{key}"] for key in wanted} == wanted
    log.close()


def test_facts_with_the_name_of_a_field_stay_texts(syslog: Syslog) -> None:
    log = Log(["journal"], "text", journal_socket=str(syslog.path))
    facts = {"connect": "proxy", "user-agent": "nmap", "service": "another"}
    log.write_events(event("noted", text="Connection", facts=facts))
    received = fields(syslog.socket.recv(65536))
    assert received["SUPERD_CONNECT_USEC"] == "proxy"
    assert received["SUPERD_USER_AGENT"] == "nmap"
    assert received["SUPERD_SERVICE"] == "echo"
    log.close()


def test_each_lost_event_is_counted(log_to: LogTo) -> None:
    log = log_to("/dev/full")
    log.write_events(event() * 5)
    assert log.failures == 5
    log.write_events(event() * 2)  # the line with the number of lost lines is lost, too
    assert log.failures == 7


def test_events_sent_before_a_socket_was_full_are_not_counted_as_lost(
    syslog: Syslog, log_to: LogTo
) -> None:
    log = log_to("syslog", syslog=syslog.path)
    log.write_events(event() * 1000)
    syslog.socket.setblocking(False)
    received = 0
    with contextlib.suppress(BlockingIOError):
        while syslog.line():
            received += 1
    assert 0 < received < 1000
    assert log.failures == 1000 - received
    log.info("again")
    assert syslog.line().endswith(f"warning: {1000 - received} log records were lost")


def test_events_from_before_and_after_a_restart_of_syslog_are_counted_right(
    syslog: Syslog, log_to: LogTo
) -> None:
    log = log_to("syslog", form="json", syslog=syslog.path)
    log.write_events(event() * 2)
    syslog.stop()
    log.write_events(event() * 3)
    assert log.failures == 3
    again = Syslog(syslog.path)
    log.write_events(event() * 2)
    assert '"3 log records were lost"' in again.line()
    assert [again.line().endswith(event().decode().rstrip()) for _ in range(2)] == [True, True]
    again.stop()


def test_a_slow_reader_delays_a_batch_by_one_timeout_at_most(
    pipe: tuple[int, int], log_to: LogTo
) -> None:
    reader, writer = pipe
    done = threading.Event()

    def sip() -> None:
        while not done.wait(0.01):
            if select.select([reader], [], [], 0)[0]:
                os.read(reader, select.PIPE_BUF)

    drinker = threading.Thread(target=sip)
    with standard_error(writer):
        log = log_to("stderr", form="json")
        log.write_events(event() * 500)
        drinker.start()
        log.write_events(event() * 20_000)  # takes the slow reader several seconds
    done.set()
    drinker.join()
    assert log.failures > 5_000


@pytest.mark.root
def test_a_temporarily_full_disk_loses_exactly_the_reported_number_of_lines(
    tmp_path: Path,
) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a file system here")
    file, ballast = tmp_path / "records", tmp_path / "ballast"
    log = Log([str(file)], "json")
    try:
        ballast.write_bytes(bytes(40_000))
        for _ in range(100):
            log.write_events(event() * 7)
        lost = log.failures
        assert 0 < lost < 700
        ballast.unlink()
        log.write_events(event())
        lines = file.read_bytes().splitlines(keepends=True)
        assert lines.count(event()) + lost == 701
        others = [line for line in lines if line != event()]
        assert f"{lost} log records were lost" in others.pop().decode()
        assert all(event().startswith(torn.rstrip()) for torn in others)
        assert len(others) <= 1
    finally:
        log.close()
        subprocess.run(["umount", str(tmp_path)], check=True)
