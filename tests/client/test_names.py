"""Clients and names: every address of a name is tried, over tcp and udp."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.harness import EVENT_TIMEOUT, Superd, command
from tests.support.ports import free_port

pytestmark = [pytest.mark.root, pytest.mark.tool("unshare", "mount")]

TOML = """
[service.echo]
plugin = "echo"
listen = ["tcp://127.0.0.3:0", "udp://127.0.0.3:0"]
"""

HOSTS = "127.0.0.2 both.example\\n127.0.0.3 both.example\\n::1 both.example\\n"
PRIVATE = 'printf "$1" > "$0" && mount --bind "$0" /etc/hosts && shift && exec "$@"'


def run(directory: Path, *arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a command of superd in whose hosts file both.example has three addresses."""
    wrapper = ("unshare", "--mount", "sh", "-c", PRIVATE, str(directory / "hosts"), HOSTS)
    return subprocess.run(
        [*wrapper, *command(*arguments)],
        input=data, capture_output=True, timeout=EVENT_TIMEOUT, check=False,
    )  # fmt: skip


def test_the_next_address_is_tried_after_a_refusal(served: Superd, tmp_path: Path) -> None:
    at = f"both.example:{served.address('echo')[1]}"
    done = run(tmp_path, "connect", at, data=b"by tcp")
    assert (done.stdout, done.stderr) == (b"by tcp", b"")
    at = f"udp://both.example:{served.address('echo', 'udp')[1]}"
    done = run(tmp_path, "connect", at, data=b"by udp")
    assert (done.stdout, done.stderr) == (b"by udp", b"")
    done = run(tmp_path, "message", at, "a message")
    assert (done.stdout, done.stderr) == (b"a message", b"")


def test_one_error_names_all_addresses_that_refused(tmp_path: Path) -> None:
    for at in (f"both.example:{free_port()}", f"udp://both.example:{free_port()}"):
        printed = run(tmp_path, "connect", at, data=b"hello").stderr.decode()
        assert printed.startswith(f"superd: cannot connect to {at} (")
        assert printed.endswith("): Connection refused\n")
        for host in ("127.0.0.2", "127.0.0.3", "::1"):
            assert host in printed
