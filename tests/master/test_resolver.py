"""The master's half of the resolver: what that says in the end is not to be relied on."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from superd.master.logs.log import Log
from superd.master.resolver import Resolver


@pytest.mark.parametrize(
    "words",
    [b"[]", b"7", b"{}", b'{"kind": []}', b'{"kind": "failed"}', b"[" * 50_000, b"\xff"],
)
def test_last_words_that_are_none_do_not_matter(tmp_path: Path, words: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.send(words)
    theirs.close()
    resolver = Resolver(Log([str(tmp_path / "log")], "text"))
    resolver._channel = ours  # as one has it that was taken over
    now = time.monotonic()
    resolver.ended(1, now)
    assert (resolver.pid, resolver.due) == (None, now + 1.0)
    said = (tmp_path / "log").read_text()
    assert said.endswith("error: the resolver ended with code 1; its successor starts in 1 s\n")
    resolver.close()
