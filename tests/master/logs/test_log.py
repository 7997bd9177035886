"""The sinks of the log: what they write, and that none of them stops or delays the master."""

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

SOON = 5.0  # seconds; what waits for a reader would wait for ever


@pytest.fixture
def log_to() -> Iterator[LogTo]:
    """Return a function that makes a log; all are closed in the end."""
    with contextlib.ExitStack() as stack:

        def make(*sinks: str | Path, form: str = "text", syslog: Path | None = None) -> Log:
            log = Log([str(sink) for sink in sinks], form, str(syslog))
            stack.callback(log.close)
            return log

        yield make


@contextlib.contextmanager
def standard_error(descriptor: int) -> Iterator[None]:
    """Have `descriptor` stand for standard error."""
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
    """Read what there is, without waiting for more."""
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


def test_a_log_file_is_not_for_everybody_and_is_added_to(tmp_path: Path, log_to: LogTo) -> None:
    path = tmp_path / "log"
    for word in ("first", "second"):
        log_to(path).info(word)
    assert [line.split()[-1] for line in path.read_text().splitlines()] == ["first", "second"]
    assert path.stat().st_mode & 0o007 == 0


def test_a_file_that_was_renamed_is_opened_anew_on_demand(tmp_path: Path, log_to: LogTo) -> None:
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


def test_a_file_that_cannot_be_opened_anew_is_written_on(tmp_path: Path, log_to: LogTo) -> None:
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs" / "log"
    log = log_to(path)
    (tmp_path / "logs").rename(tmp_path / "old")
    log.reopen()
    log.info("after")
    lines = (tmp_path / "old" / "log").read_text().splitlines()
    assert "error: not reopened, the old file stays in use: No such file or directory" in lines[0]
    assert lines[1].endswith("after")


@pytest.mark.parametrize("name", ["", "directory", "nowhere/log", "pipe"])
def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, name: str, log_to: LogTo) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")  # nobody reads it
    with pytest.raises(SuperdError, match="cannot log to "):
        log_to(tmp_path / name)


def test_a_full_disk_is_counted_and_not_more(log_to: LogTo) -> None:
    log = log_to("/dev/full")
    for _ in range(100):
        log.info("hello")
    assert log.failures == 100


def test_one_sink_that_fails_does_not_keep_the_others_from_writing(
    tmp_path: Path, log_to: LogTo
) -> None:
    log = log_to("/dev/full", tmp_path / "log")
    log.info("hello")
    assert "hello" in (tmp_path / "log").read_text()


def test_a_pipe_whose_reader_has_gone_is_counted(pipe: tuple[int, int], log_to: LogTo) -> None:
    reader, writer = pipe
    with standard_error(writer):
        log = log_to("stderr")
        os.dup2(os.open(os.devnull, os.O_RDONLY), reader)
        log.info("hello")
    assert log.failures == 1


def test_a_standard_error_that_is_closed_is_counted(tmp_path: Path, log_to: LogTo) -> None:
    with open(tmp_path / "log", "w") as file, standard_error(file.fileno()):
        log = log_to("stderr")
        os.close(STDERR)
        log.info("hello")
    assert log.failures == 1


@pytest.mark.parametrize("kind", ["pipe", "stream socket", "datagram socket"])
def test_a_reader_who_stops_delays_nobody_and_hears_how_much_it_missed(
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
        assert time.monotonic() - started < SOON
        available(reader)
        log.info("back again")
        text = available(reader).decode()
    assert "1000 log records were lost" in text
    assert text.endswith("back again\n")


def test_a_terminal_that_was_stopped_delays_nobody(log_to: LogTo) -> None:
    import termios

    controller, terminal = os.openpty()
    with open(controller, "rb", buffering=0), open(terminal, "wb", buffering=0):
        with standard_error(terminal):
            log = log_to("stderr")
        termios.tcflow(terminal, termios.TCOOFF)  # as Ctrl-S does
        started = time.monotonic()
        for _ in range(1000):
            log.info("x" * 1000)
        assert time.monotonic() - started < SOON
        assert log.failures
        termios.tcflow(terminal, termios.TCOON)


def test_others_who_share_a_pipe_are_not_made_to_write_without_blocking(
    pipe: tuple[int, int], log_to: LogTo
) -> None:
    with standard_error(pipe[1]):
        log_to("stderr").info("hello")
        assert os.get_blocking(STDERR)
    assert os.get_blocking(pipe[1])


def test_a_line_that_was_cut_off_does_not_swallow_the_next(
    pipe: tuple[int, int], log_to: LogTo
) -> None:
    reader, writer = pipe
    with standard_error(writer):
        log = log_to("stderr")
        detail = tuple(["y" * 2000] * 60)  # longer than the pipe has room
        log.write(Record("error", "long", detail=detail))
        assert log.failures == 1
        cut = available(reader)
        assert not cut.endswith(b"\n")
        log.info("next")
        lines = (cut + available(reader)).decode().splitlines()
    assert lines[-1].endswith("info: next")
    assert "1 log records were lost" in lines[-2]


class Syslog:
    """A daemon that takes what is logged."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(SOON)
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


def test_a_syslog_that_was_restarted_is_found_again(syslog: Syslog, log_to: LogTo) -> None:
    log = log_to("syslog", syslog=syslog.path)
    syslog.stop()
    log.info("nobody hears this")
    assert log.failures == 1
    again = Syslog(syslog.path)
    log.info("hello")
    assert again.line().endswith("warning: 1 log records were lost")
    assert again.line().endswith("info: hello")
    again.stop()


def test_a_syslog_that_does_not_read_delays_nobody(syslog: Syslog, log_to: LogTo) -> None:
    log = log_to("syslog", syslog=syslog.path)
    started = time.monotonic()
    while log.failures < 1000:
        log.info("hello")
    assert time.monotonic() - started < SOON


def test_a_syslog_that_is_not_there_is_named(tmp_path: Path, log_to: LogTo) -> None:
    with pytest.raises(SuperdError, match="cannot log to syslog: No such file"):
        log_to("syslog", syslog=tmp_path / "nowhere")


def event(kind: str = "closed", /, **more: Any) -> bytes:
    data = {"time": 1700000000.5, "pid": 7, "service": "echo", "event": kind, "conn": "1-2"}
    return json.dumps({**data, "peer": "127.0.0.1:5", **more}).encode() + b"\n"


def test_events_go_to_a_place_of_their_own_in_a_form_of_their_own(tmp_path: Path) -> None:
    log = Log(
        [str(tmp_path / "log")], "text",
        record_sinks=[str(tmp_path / "records")], record_format="json",
    )  # fmt: skip
    log.info("general")
    log.write_events(event() + event("accepted"))
    log.close()
    assert (tmp_path / "records").read_bytes() == event() + event("accepted")
    assert (tmp_path / "log").read_text().count("\n") == 1


def test_events_go_where_the_log_goes_unless_told_otherwise(tmp_path: Path, log_to: LogTo) -> None:
    log = log_to(tmp_path / "log")
    log.write_events(event(end="client"))
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.endswith("superd[7] info: closed service=echo conn=1-2 peer=127.0.0.1:5 end=client")


def test_a_line_that_was_not_begun_leaves_no_empty_line_behind(
    pipe: tuple[int, int], log_to: LogTo
) -> None:
    reader, writer = pipe
    with standard_error(writer):
        log = log_to("stderr", form="json")
        while not log.failures:
            log.write_events(event())
        heard = available(reader)
        log.write_events(event())
        heard += available(reader)
    assert b"" not in heard.splitlines()


def test_general_records_have_xinetds_form_too(tmp_path: Path, log_to: LogTo) -> None:
    log_to(tmp_path / "log", form="xinetd").warning("hello", "echo")
    line = (tmp_path / "log").read_text()
    stamp, _, rest = line.partition(" ")
    assert time.strptime(stamp, "%y/%m/%d@%H:%M:%S:")
    assert rest == f"superd[{os.getpid()}]: WARNING: hello service=echo\n"


def test_syslog_hears_of_events_in_xinetds_name_in_its_form(syslog: Syslog, log_to: LogTo) -> None:
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


def test_the_journal_gets_fields_of_its_own(syslog: Syslog) -> None:
    log = Log(["journal"], "text", journal_socket=str(syslog.path))
    log.write(Record("error", "failed", service="echo", detail=("line 1", "line 2")))
    heard = fields(syslog.socket.recv(65536))
    assert heard["MESSAGE"] == "failed\nline 1\nline 2"
    assert (heard["PRIORITY"], heard["SYSLOG_IDENTIFIER"]) == ("3", "superd")
    assert heard["SUPERD_SERVICE"] == "echo"
    log.write(Record("error", "\x1b[2J\nMESSAGE=forged", peer="@a\nMESSAGE=forged"))
    heard = fields(syslog.socket.recv(65536))
    assert heard["MESSAGE"] == r"\x1b[2J\nMESSAGE=forged"
    assert heard["SUPERD_PEER"] == "@a\nMESSAGE=forged"
    log.write_events(event(duration=1.25, end="client", **{"in": 5, "out": 6}))
    heard = fields(syslog.socket.recv(65536))
    assert heard["MESSAGE"].startswith("closed service=echo conn=1-2")
    assert heard["SYSLOG_PID"] == "7"
    wanted = {
        "EVENT": "closed", "CONNECTION": "1-2", "PEER": "127.0.0.1:5", "END": "client",
        "DURATION_USEC": "1250000", "BYTES_IN": "5", "BYTES_OUT": "6",
    }  # fmt: skip
    assert {key: heard[f"SUPERD_{key}"] for key in wanted} == wanted
    log.close()


def test_facts_that_are_called_as_a_field_is_are_texts_all_the_same(syslog: Syslog) -> None:
    log = Log(["journal"], "text", journal_socket=str(syslog.path))
    facts = {"connect": "proxy", "user-agent": "nmap", "service": "another"}
    log.write_events(event("noted", text="Connection", facts=facts))
    heard = fields(syslog.socket.recv(65536))
    assert heard["SUPERD_CONNECT_USEC"] == "proxy"
    assert heard["SUPERD_USER_AGENT"] == "nmap"
    assert heard["SUPERD_SERVICE"] == "echo"
    log.close()


def test_events_that_are_lost_are_counted_one_by_one(log_to: LogTo) -> None:
    log = log_to("/dev/full")
    log.write_events(event() * 5)
    assert log.failures == 5
    log.write_events(event() * 2)  # the line that tells of the loss is lost itself
    assert log.failures == 7


def test_what_a_socket_took_before_it_was_full_is_not_counted_as_lost(
    syslog: Syslog, log_to: LogTo
) -> None:
    log = log_to("syslog", syslog=syslog.path)
    log.write_events(event() * 1000)
    syslog.socket.setblocking(False)
    heard = 0
    with contextlib.suppress(BlockingIOError):
        while syslog.line():
            heard += 1
    assert 0 < heard < 1000
    assert log.failures == 1000 - heard
    log.info("again")
    assert syslog.line().endswith(f"warning: {1000 - heard} log records were lost")


def test_events_of_before_and_after_a_restart_of_syslog_are_told_apart(
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


def test_a_reader_who_takes_a_little_at_a_time_delays_a_write_no_longer_than_once(
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
        log.write_events(event() * 20_000)  # takes a sipping reader for several seconds
    done.set()
    drinker.join()
    assert log.failures > 5_000


@pytest.mark.root
def test_a_disk_that_is_full_for_a_while_loses_what_is_told_and_not_a_line_more(
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
        told = [line for line in lines if line != event()]
        assert f"{lost} log records were lost" in told.pop().decode()
        assert all(event().startswith(torn.rstrip()) for torn in told)
        assert len(told) <= 1
    finally:
        log.close()
        subprocess.run(["umount", str(tmp_path)], check=True)
