"""`superd check` as root judges what clients will need as the user of each service, in its jail."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Say
from tests.config.configurations import written
from tests.support.harness import Superd, command
from tests.support.programs import public_directory

pytestmark = pytest.mark.root

ECHO = '[service.{0}]\nplugin = "echo"\nlisten = "unix://@check-{0}"\n'


PROGRAMS = """
    [service.x]
    plugin = "exec"
    listen = "tcp://127.0.0.1:0"
    user = "nobody"
    options = {{ command = {command} }}
    """


def checked(superd_here: Say, file: Path) -> tuple[int, list[str]]:
    """Return the exit code of `superd check` and its lines of problems."""
    done = superd_here("check", str(file))
    return done.returncode, done.stderr.splitlines()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the user nobody may enter."""
    with public_directory() as directory:
        yield directory


def made(place: Path, name: str, content: str, mode: int = 0o755) -> str:
    """Make a file; return its path as a string of TOML."""
    (place / name).write_text(content)
    (place / name).chmod(mode)
    return f'"{place}/{name}"'


@pytest.mark.parametrize(
    ("content", "mode", "expected"),
    [
        ("#!/bin/sh\n", 0o644, "PLACE/p is not executable; chmod +x makes it so"),
        ("#!/bin/sh\n", 0o700, "the service's user may not execute PLACE/p"),
        ("#!/none/sh\n", 0o755, "the interpreter of PLACE/p: /none/sh does not exist: there is no"),
        ("#!/bin/sh\r\n", 0o755, "the first line of PLACE/p ends with CR LF; its interpreter"),
        ("#!sh\n", 0o755, "the interpreter of PLACE/p is no absolute path: 'sh'"),
        (
            "#!/usr/bin/env nosuchsh\n",
            0o755,
            "PLACE/p needs the interpreter nosuchsh, which is not",
        ),
        ("echo\n", 0o755, "PLACE/p is neither a program nor a script that starts with #!"),
        ("#!/bin/sh\n", 0o755, ""),
        ("#! /usr/bin/env sh\n", 0o755, ""),
    ],
)
def test_check_judges_a_program_as_the_user_of_its_service(
    tmp_path: Path, place: Path, superd_here: Say, content: str, mode: int, expected: str
) -> None:
    file = written(tmp_path, PROGRAMS.format(command=made(place, "p", content, mode)))
    code, lines = checked(superd_here, file)
    if expected:
        [line] = lines
        path = f"{file}:6:27: service.x.options.command: "
        assert line.startswith(path + expected.replace("PLACE", str(place)))
    assert code == (78 if expected else 0)


def test_check_names_the_directory_that_the_user_may_not_search(
    tmp_path: Path, place: Path, superd_here: Say
) -> None:
    (place / "private").mkdir(mode=0o700)
    command = made(place, "private/p", "#!/bin/sh\n")
    code, [line] = checked(superd_here, written(tmp_path, PROGRAMS.format(command=command)))
    assert code == 78
    assert f"the service's user may not search {place}/private, where {place}/private/p is" in line


def test_check_looks_for_a_program_in_the_jail(
    tmp_path: Path, jail: Path, superd_here: Say
) -> None:
    text = PROGRAMS.format(command='"/bin/cat"') + f'chroot = "{jail}"\n'
    code, [line] = checked(superd_here, written(tmp_path, text))
    assert code == 78
    assert f'options.command: there is no program "/bin/cat" in {jail}' in line
    (jail / "bin").mkdir()
    shutil.copy("/bin/cat", jail / "bin/cat")
    code, [line] = checked(superd_here, written(tmp_path, text))
    assert re.search(r"options\.command: /bin/cat needs the loader \S+, which is not there$", line)
    only_there = made(jail, "bin/only", "#!/bin/cat\n").replace(str(jail), "")
    code, [line] = checked(superd_here, written(tmp_path, text.replace('"/bin/cat"', only_there)))
    assert "the interpreter of /bin/only: /bin/cat needs the loader" in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            'command = "caat"',
            '6:27: service.x.options.command: there is no program "caat" (did',
        ),
        ('command = "cat -u"', 'a program and its arguments are an array: ["cat", "-u"]'),
        ('command = "/bin/caat"', 'there is no program "/bin/caat" (did you mean "cat"?)'),
        (
            'command = "cat", directory = "/none"',
            "service.x.options.directory: No such file or",
        ),
        (
            'command = "cat", directory = "/root"',
            "service.x.options.directory: Permission denied",
        ),
    ],
)
def test_a_wrong_command_is_reported_at_its_option(
    tmp_path: Path, superd_here: Say, options: str, expected: str
) -> None:
    text = PROGRAMS.replace("command = {command}", options).format()
    code, [line] = checked(superd_here, written(tmp_path, text))
    assert code == 78
    assert expected in line


def test_a_service_whose_program_cannot_run_leaves_the_others_serving(tmp_path: Path) -> None:
    served = Superd(tmp_path, PROGRAMS.format(command='"caat"') + ECHO.format("fine"))
    served.start()
    try:
        assert list(served.answer()["broken"]) == ["x"]
        served.wait_for_log('error: not served: there is no program "caat"')
    finally:
        served.stop()


@pytest.mark.tool("unshare")
def test_an_absent_syslog_is_an_error_only_where_there_is_no_other_sink(tmp_path: Path) -> None:
    """It may start after superd, as in a container or at boot."""
    dev = "for f in null zero random urandom; do cp -a /dev/$f new; done; mkdir new/shm; "
    script = f"mkdir new; mount -t tmpfs t new; {dev} mount --move new /dev; "
    for text, code, said in (
        ('log = ["stderr", "syslog"]', 0, "daemon.log[1]: cannot log to syslog: No such file or"),
        (
            'log = "syslog"',
            78,
            "daemon.log: cannot log to syslog: No such file or directory: /dev/",
        ),
    ):
        file = written(tmp_path, f"[daemon]\n{text}\n{ECHO.format('a')}")
        shell = f'{script} "$@"'
        done = subprocess.run(
            ["unshare", "-m", "sh", "-ec", shell, "sh", *command("check", str(file))],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        (tmp_path / "new").rmdir()
        assert done.returncode == code, done.stderr
        assert said in done.stderr
