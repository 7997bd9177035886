"""Files that the master passes to workers: no worker can change them, or keep many of them."""

from __future__ import annotations

import os
import socket

import pytest

from superd.master.report.queries import file_with
from superd.observe.records import Threshold
from superd.worker.channel import Channel
from tests.master.children import child_of


def test_a_worker_gets_a_text_of_any_length_and_cannot_change_it() -> None:
    text = b"line\n" * 100_000
    file = file_with(text)
    assert file is not None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert child_of(ours).send_files("observe", [file], what="metrics")
        os.close(file)
        [message] = Channel(theirs, Threshold("debug")).messages()
    [taken] = message.pop("files")
    assert message == {"kind": "observe", "what": "metrics"}
    assert os.pread(taken, 1 << 20, 0) == text
    assert not os.get_inheritable(taken)
    for change in (lambda: os.pwrite(taken, b"x", 0), lambda: os.ftruncate(taken, 0)):
        with pytest.raises(PermissionError):
            change()
    os.close(taken)


def test_a_worker_that_does_not_read_gets_only_a_few_files() -> None:
    file = file_with(b"text")
    assert file is not None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = child_of(ours)
        sent = 0
        while child.send_files("observe", [file], what="metrics"):
            sent += 1
        assert 1 <= sent < 20
        for message in Channel(theirs, Threshold("debug")).messages():
            os.close(*message["files"])
        assert child.send_files("observe", [file], what="metrics")
    os.close(file)
