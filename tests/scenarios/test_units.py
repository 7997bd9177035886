"""The units of conf/systemd: systemd's verdict on them, and superd confined as they say."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness import EVENT_TIMEOUT, Superd, ask_udp, exchange, receive_all
from tests.support.namespaces import need
from tests.support.ports import own_host
from tests.support.programs import public_directory
from tests.support.units import DYNAMIC_ID, UNITS, settings, wrapper

ROOT, UNPRIVILEGED = "superd.service", "superd-unprivileged.service"
PROGRAMS = ("unshare", "mount", "setpriv", "systemd-analyze")
TOML = """
[defaults]
{defaults}

[service.echo]
plugin = "echo"
listen = ["tcp://{host}:907", "udp://{host}:907", "unix://{directory}/echo?mode=0600"]
max-load = 10000

[service.named]
plugin = "echo"
listen = "tcp://{host}:908"
deny = ".example.com"

[service.program]
plugin = "exec"
listen = "tcp://{host}:909"
chroot = ""
options = {{ command = ["/bin/cat", "/proc/self/status"], stderr = "log" }}
"""


def analyzed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("unit", "most"), [(ROOT, 28), (UNPRIVILEGED, 16)])
@pytest.mark.tool("systemd-analyze")
def test_systemd_rates_the_exposure_of_the_units_as_low(unit: str, most: int) -> None:
    done = analyzed("security", "--offline=yes", f"--threshold={most}", str(UNITS / unit))
    assert done.returncode == 0, done.stdout
    assert "OK" in done.stdout.splitlines()[-1]


@pytest.mark.tool("systemd-analyze")
def test_systemd_knows_every_setting(tmp_path: Path) -> None:
    program = tmp_path / "superd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in UNITS.iterdir():
        if unit.suffix in (".service", ".socket"):
            text = unit.read_text().replace("/usr/bin/superd", str(program))
            (tmp_path / unit.name).write_text(text)
    for unit in tmp_path.glob("*.*"):
        done = analyzed("verify", "--man=no", "--generators=no", str(unit))
        ours = [line for line in done.stderr.splitlines() if "superd" in line]
        assert (done.returncode, ours) == (0, []), done.stderr


def test_the_units_differ_only_in_privileges() -> None:
    root, other = settings(UNITS / ROOT), settings(UNITS / UNPRIVILEGED)
    for key in root.keys() & other.keys() - {"CapabilityBoundingSet", "SystemCallFilter"}:
        if not key.startswith("Exec") and key != "Description":
            assert root[key] == other[key], key


@pytest.fixture
def directory() -> Iterator[Path]:
    with public_directory() as found:
        (found / "jail").mkdir()
        yield found


def confined_superd(directory: Path, unit: str, defaults: str) -> Superd:
    """Return superd with the directories that systemd would make for its unit."""
    made = {name: directory / name.partition("_")[0].lower() for name in DIRECTORIES}
    for path in made.values():
        path.mkdir()
        if unit == UNPRIVILEGED:
            os.chown(path, int(DYNAMIC_ID), int(DYNAMIC_ID))
    if unit == UNPRIVILEGED:
        os.chown(directory, int(DYNAMIC_ID), int(DYNAMIC_ID))
    toml = TOML.format(directory=directory, defaults=defaults, host=own_host())
    superd = Superd(directory, toml, env={name: str(path) for name, path in made.items()})
    superd.own_files = False
    return superd


DIRECTORIES = ("RUNTIME_DIRECTORY", "STATE_DIRECTORY")


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.tool(*PROGRAMS)
@pytest.mark.parametrize(
    ("unit", "defaults"),
    [(ROOT, 'user = "nobody"\nchroot = "{directory}/jail"'), (UNPRIVILEGED, "")],
)
def test_superd_serves_when_confined_as_its_unit_says(
    directory: Path, unit: str, defaults: str
) -> None:
    need("unshare", "--mount", "mount", "-t", "proc", "-o", "subset=pid", "proc", "/proc")
    superd = confined_superd(directory, unit, defaults.format(directory=directory))
    try:
        superd.start(*wrapper(unit, directory))
        assert exchange(superd.connect("echo"), b"hello") == b"hello"
        assert ask_udp(superd.address("echo", "udp"), b"hello") == b"hello"
        assert exchange(superd.connect("named"), b"hello") == b"hello"
        with superd.connect("program") as client:
            status = receive_all(client).decode()
        assert "CapEff:\t0000000000000000" in status
        assert "Seccomp:\t2" in status
        assert superd.run("reload").returncode == 0
        assert superd.run("ban", "192.0.2.1").returncode == 0
        assert superd.run("status").returncode == 0
        assert superd.run("stop").returncode == 0
        assert superd.wait(EVENT_TIMEOUT) == 0
        assert list((directory / "state").iterdir()) == [directory / "state" / "superd.bans"]
        assert "error" not in superd.log()
    finally:
        superd.stop()
        print(superd.log())


@pytest.mark.root
@pytest.mark.tool("systemd-sysusers", "systemd-tmpfiles")
def test_systemd_creates_the_user_and_the_directories(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for program, kind in (("systemd-sysusers", "sysusers"), ("systemd-tmpfiles", "tmpfiles")):
        file = UNITS / f"superd.{kind}"
        options = ["--create"] if kind == "tmpfiles" else []
        command = [program, f"--root={tmp_path}", *options, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "superd:" in (tmp_path / "etc" / "passwd").read_text()
    jail = (tmp_path / "var/lib/superd/jail").stat()
    assert (jail.st_mode & 0o777, jail.st_uid) == (0o755, 0)
