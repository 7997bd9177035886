"""Host names: which texts are valid, and their form in DNS."""

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
def test_a_name_is_in_the_form_of_dns(text: str) -> None:
    assert normalized_name(text) == GOOD[text]


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "a..b", ".a", "a b", "a\n", "a\0b", "-a", "a-", "a/b", "a%lo", "*.a",
        "[::1]", "::1", "=a", "127.1", "192.0.2.1", "2130706433", "0x7f000001", "0x7f.0x1", "a.1",
        "x" * 64, LONGEST + "x", "x." * 200, "ü" * 300, "ü" * 60, "\udc80",
    ],
)  # fmt: skip
def test_an_invalid_name_is_rejected(text: str) -> None:
    assert normalized_name(text) == ""


@given(st.text())
def test_a_normalized_name_is_ascii_and_stays_the_same(text: str) -> None:
    name = normalized_name(text)
    assert name.isascii()
    assert len(name) <= 254
    assert normalized_name(name) == name
