"""A refusal has one word, which the log line and the counter use."""

from __future__ import annotations

import re

from superd.admission.refusals import Refusal
from superd.admission.scoreboard import Roster, Scoreboard


def test_each_refusal_has_a_unique_word() -> None:
    words = [refusal.value for refusal in Refusal]
    assert len(set(words)) == len(words)
    for word in words:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", word)


def test_each_refusal_has_a_counter_named_after_its_word() -> None:
    counters = Scoreboard(Roster.of(["echo"], 1)).totals("echo")
    assert {f"refused-{refusal.value}" for refusal in Refusal} <= set(counters)
