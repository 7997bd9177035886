"""Ordinary operations of Python in an empty jail: each works or fails as listed here."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.harness import Superd, exchange, make_plugin


def refused(module: str) -> str:
    """Return the pattern of the error of a late import: the module and the remedy."""
    return rf"LateImportError: late import of '{module}' .*preload = \(\"{module}\",\)"


def unknown(codec: str) -> str:
    """Return the pattern of the error of a codec, which Python calls unknown."""
    return rf"LookupError: unknown encoding: .*preload = \(\"encodings\.{codec}\",\)"


NO_FILE = "FileNotFoundError: "
CODECS_LEFT_OUT = {
    **{name: name for name in ("utf_32", "utf_7", "cp437", "iso8859_15", "raw_unicode_escape")},
    **{name: name for name in ("charmap", "shift_jis", "gb18030")},
    "rot13": "rot_13",
}

# Every probe that fails in an empty jail, with its error. An error of superd names the remedy; most
# of the others say that a file is missing.
FAILING = {
    **{f"codec_{name}": unknown(module) for name, module in CODECS_LEFT_OUT.items()},
    "late_import": refused("colorsys"),
    "library_by_name": refused("ctypes.util"),
    "write_a_mail": refused("email.generator"),
    "pool_of_processes": refused("concurrent.futures.process"),
    "lock_between_processes": refused("multiprocessing.synchronize"),
    "shared_memory": refused("multiprocessing.shared_memory"),
    "resource_of_a_package": f"LateImportError: late import of 'importlib|{NO_FILE}",
    "data_of_a_package": NO_FILE,
    "installed_plugins": "LookupError: silently none",
    "installed_version": "PackageNotFoundError: ",
    "time_zone_by_name": "ZoneInfoNotFoundError: ",
    "locale_of_another_country": "Error: unsupported locale setting",
    "name_lookup_on_the_loop": "gaierror: .*Temporary failure in name resolution",
    "look_up_localhost": "gaierror: .*Temporary failure in name resolution",
    "look_up_a_host_by_address": "herror: .*Host name lookup failure",
    "look_up_a_service": "OSError: service/proto not found",
    "look_up_a_service_with_a_host": "gaierror: .*Servname not supported",
    "look_up_a_protocol": "OSError: protocol not found",
    "user_by_name": "KeyError: .*name not found: 'daemon'",
    "group_by_name": "KeyError: .*name not found: 'daemon'",
    "run_a_program": NO_FILE,
    "spawn_a_program": NO_FILE,
    "program_on_the_loop": NO_FILE,
    "certificate_from_a_file": NO_FILE,
    "temporary_file": f"{NO_FILE}.*No usable temporary directory",
    "terminal": NO_FILE,
    "null_device": NO_FILE,
    "random_device": NO_FILE,
    "descriptors_in_proc": NO_FILE,
}

# files that some hosts lack
FILES_OF_THE_HOST = {
    "look_up_a_service": "/etc/services",
    "look_up_a_service_with_a_host": "/etc/services",
    "look_up_a_protocol": "/etc/protocols",
    "time_zone_by_name": "/usr/share/zoneinfo/Europe/Berlin",
}


def outcomes(superd: Superd) -> dict[str, str]:
    """Run all probes and return the outcome of each."""
    names = exchange(superd.connect("probes"), b"?\n").decode().split()
    return {
        name: exchange(superd.connect("probes"), f"{name}\n".encode()).decode() for name in names
    }


def start(start_superd: Start, directory: Path, keys: str, loop: str) -> Superd:
    source = Path(__file__).with_name("plugin.py").read_text()
    env = make_plugin(directory / "plugins", "probes", source)
    root = Path(__file__).parent.parent.parent  # the plugin imports the probes from there
    return start_superd(
        f"""
        [daemon]
        loop = "{loop}"
        [service.probes]
        plugin = "probes"
        listen = "tcp://127.0.0.1:0"
        {keys}
        """,
        env={"PYTHONPATH": f"{env['PYTHONPATH']}{os.pathsep}{root}"},
    )


@pytest.mark.root
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_in_an_empty_jail_every_probe_works_or_fails_with_the_listed_error(
    start_superd: Start, tmp_path: Path, jail: Path, loop: str
) -> None:
    superd = start(start_superd, tmp_path, f'chroot = "{jail}"', loop)
    [worker] = superd.workers()
    found = outcomes(superd)
    for name, outcome in found.items():
        print(f"{name}: {outcome}")
    assert len(found) > 100
    assert {n for n, outcome in found.items() if outcome != "ok"} == set(FAILING)
    wrong = {n: found[n] for n, pattern in FAILING.items() if not re.match(pattern, found[n])}
    assert not wrong
    assert superd.workers() == [worker], "a probe has ended the worker"
    assert list(jail.iterdir()) == []
    assert superd.stop() == 0


@pytest.mark.root
def test_outside_a_jail_every_probe_works(start_superd: Start, tmp_path: Path) -> None:
    """Else a failure in a jail would prove nothing."""
    found = outcomes(start(start_superd, tmp_path, 'user = "root"', "auto"))
    for name, file in FILES_OF_THE_HOST.items():
        if not Path(file).exists():
            del found[name]
    assert {name: outcome for name, outcome in found.items() if outcome != "ok"} == {}
