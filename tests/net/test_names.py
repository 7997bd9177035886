"""Names of hosts: what may be one, and how DNS writes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superd.net.names import normalized_name

LONGEST = ".".join(["x" * 63] * 3 + ["x" * 61])

GOOD = {
    "localhost": "localhost",
    "Host.EXAMPLE": "host.example",
    "host.example.": "host.example.",
    "_srv.a-b.1.example": "_srv.a-b.1.example",
    "bücher.example": "xn--bcher-kva.example",
    "B\N{LATIN CAPITAL LETTER U WITH DIAERESIS}CHER。example": "xn--bcher-kva.example",
    LONGEST: LONGEST,
    LONGEST + ".": LONGEST + ".",
}


@pytest.mark.parametrize("text", GOOD)
def test_a_name_is_as_dns_has_it(text: str) -> None:
    assert normalized_name(text) == GOOD[text]


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "a..b", ".a", "a b", "a\n", "a\0b", "-a", "a-", "a/b", "a%lo", "*.a",
        "[::1]", "::1", "=a", "127.1", "192.0.2.1", "2130706433", "0x7f000001", "0x7f.0x1", "a.1",
        "x" * 64, LONGEST + "x", "x." * 200, "ü" * 300, "ü" * 60, "\udc80",
    ],
)  # fmt: skip
def test_what_cannot_be_a_name_is_none(text: str) -> None:
    assert normalized_name(text) == ""


@given(st.text())
def test_whatever_is_asked_is_ascii_and_itself(text: str) -> None:
    name = normalized_name(text)
    assert name.isascii()
    assert len(name) <= 254
    assert normalized_name(name) == name
