"""The words of errors: the system's, unless the exception has better ones of its own."""

from __future__ import annotations

import socket

import pytest

from superd.errors import reason


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(2, "No such file or directory", "/x"), "No such file or directory: /x"),
        (OSError(98, "address already in use"), "Address already in use"),
        (OSError(5, None), "Input/output error"),
        (OSError("its text"), "OSError: its text"),
        (socket.gaierror(-3, "Temporary failure"), "gaierror: Temporary failure"),
        (socket.herror(1, "Unknown host"), "Unknown host"),
        (
            FileNotFoundError(2, "No usable directory in ['/tmp']"),
            "No usable directory in ['/tmp']",
        ),
        (ValueError("a text"), "ValueError: a text"),
        (KeyError(), "KeyError"),
    ],
)
def test_an_error_has_the_words_that_say_most(error: BaseException, words: str) -> None:
    assert reason(error) == words
