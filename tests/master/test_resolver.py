"""The master's half of the resolver: it does not trust the last messages of the process."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from superd.master.logs.log import Log
from superd.master.resolver import Resolver


@pytest.mark.parametrize(
    "data",
    [b"[]", b"7", b"{}", b'{"kind": []}', b'{"kind": "failed"}', b"[" * 50_000, b"\xff"],
)
def test_invalid_last_messages_are_ignored(tmp_path: Path, data: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.send(data)
    theirs.close()
    resolver = Resolver(Log([str(tmp_path / "log")], "text"))
    resolver._channel = ours  # the process at the other end is compromised
    now = time.monotonic()
    resolver.ended(1, now)
    assert (resolver.pid, resolver.due) == (None, now + 1.0)
    logged = (tmp_path / "log").read_text()
    assert logged.endswith("error: the resolver ended with code 1; its successor starts in 1 s\n")
    resolver.close()
