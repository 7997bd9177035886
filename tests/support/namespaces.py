"""Network namespaces: a virtual machine's network for one test, with the addresses it needs.

Needs root. Traffic in a namespace reaches neither the real network nor another test.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

CLONE_NEWNET = 0x40000000

_numbers = itertools.count()


class Namespace:
    """A network namespace by its name; its loopback is up."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.wrapper = ("ip", "netns", "exec", name)

    def ip(self, *arguments: str) -> None:
        """Run ip(8) in the namespace."""
        _run("ip", "-n", self.name, *arguments)

    def add_address(self, address: str, device: str = "lo") -> None:
        """Add an address. It is usable immediately: duplicate address detection is off."""
        nodad = ["nodad"] if ":" in address else []
        self.ip("address", "add", address, "dev", device, *nodad)

    def sysctl(self, setting: str) -> None:
        """Apply a setting such as `net.ipv4.conf.all.rp_filter=0`, without sysctl(8)."""
        name, value = setting.split("=")
        with self.inside():
            Path("/proc/sys", *name.split(".")).write_text(value)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Enter the namespace; a socket that is made inside stays in it."""
        with open("/proc/thread-self/ns/net") as outside, open(self._file) as here:
            _set_namespace(here.fileno())
            try:
                yield
            finally:
                _set_namespace(outside.fileno())

    @property
    def _file(self) -> Path:
        return Path("/run/netns", self.name)


def need(*command: str) -> None:
    """Skip the test if a command, such as unshare(1), is not permitted."""
    try:
        _run(*command)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not permitted here: {error}")


@contextlib.contextmanager
def network_namespace() -> Iterator[Namespace]:
    """Make a namespace and remove it at the end; skip the test if that is not permitted."""
    space = Namespace(f"superd-test-{os.getpid()}-{next(_numbers)}")
    try:
        _run("ip", "netns", "add", space.name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot make a network namespace: {error}")
    try:
        space.ip("link", "set", "lo", "up")
        yield space
    finally:
        _run("ip", "netns", "delete", space.name)


def join(one: Namespace, other: Namespace) -> None:
    """Connect two namespaces by a veth pair; both ends are called `wire` and are up."""
    one.ip("link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", other.name)
    for space in (one, other):
        space.ip("link", "set", "wire", "up")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
