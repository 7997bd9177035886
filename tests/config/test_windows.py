"""Time windows: by tables, and against a model with every minute of a week."""

from __future__ import annotations

import re
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superd.admission.times import AccessTimes
from superd.config.windows import DAY, DAYS, Window, parse_window

VALID = [
    ("mon-fri 08:00-18:00", "mon-fri 08:00-18:00"),
    ("22:00-06:00", "22:00-06:00"),
    ("sat,sun", "sat,sun 00:00-24:00"),
    ("Saturday", "sat 00:00-24:00"),
    ("sun-tue 1:00-2:00", "mon,tue,sun 01:00-02:00"),
    ("mon-wed,fri 00:00-24:00", "mon-wed,fri 00:00-24:00"),
    ("mon-sun 09:00-17:30", "09:00-17:30"),
    ("00:00-24:00", "00:00-24:00"),
]


@pytest.mark.parametrize(("text", "shown"), VALID)
def test_the_text_of_a_window_is_parsed_as_the_same_window(text: str, shown: str) -> None:
    window = parse_window(text)
    assert str(window) == shown
    assert parse_window(shown) == window


INVALID = [
    ("", "expected days and hours"),
    ("08:00", "expected days and hours"),
    ("mon fri 08:00-09:00", "expected days and hours"),
    ("08:00-09:00 mon", "expected days and hours"),
    ("funday", '"funday" is not a day'),
    ("mo", '"mo" is not a day'),
    ("monda", '"monda" is not a day'),
    ("mon-", '"" is not a day'),
    ("25:00-26:00", "expected a time from 00:00 to 24:00, found 25:00"),
    ("08:60-09:00", "expected a time from 00:00 to 24:00, found 08:60"),
    ("08:00-24:01", "expected a time from 00:00 to 24:00, found 24:01"),
    ("24:00-06:00", "24:00 is the end of a day"),
    ("08:00-08:00", "is empty; the whole day"),
]


@pytest.mark.parametrize(("text", "expected"), INVALID)
def test_an_invalid_window_is_rejected_with_the_reason(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        parse_window(text)


@given(st.text())
def test_any_text_is_a_window_or_has_a_printable_error(text: str) -> None:
    message = ""
    try:
        window = parse_window(text)
    except ValueError as error:
        message = str(error)
    else:
        assert parse_window(str(window)) == window
    assert message.isprintable()


@given(
    st.sets(st.integers(0, 6), min_size=1),
    st.integers(0, DAY - 1),
    st.integers(1, DAY),
    st.integers(0, 6),
    st.integers(0, DAY - 1),
)
def test_a_window_agrees_with_a_naive_model_of_the_minutes_of_a_week(
    days: set[int], start: int, end: int, weekday: int, minute: int
) -> None:
    if start == end:
        return
    length = end - start if end > start else DAY - start + end
    week = {(day * DAY + start + offset) % (7 * DAY) for day in days for offset in range(length)}
    window = Window(frozenset(days), start, end)
    assert window.contains(weekday, minute) is (weekday * DAY + minute in week)


def at(text: str, zone: str = "Europe/Berlin") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


MOMENTS = [
    # 2026-11-27 is a Friday
    ("mon-fri 08:00-18:00", "2026-11-27 07:59:59", False),
    ("mon-fri 08:00-18:00", "2026-11-27 08:00", True),
    ("mon-fri 08:00-18:00", "2026-11-27 17:59:59", True),
    ("mon-fri 08:00-18:00", "2026-11-27 18:00", False),
    ("mon-fri 08:00-18:00", "2026-11-28 12:00", False),
    ("fri 22:00-06:00", "2026-11-28 05:59", True),
    ("fri 22:00-06:00", "2026-11-28 06:00", False),
    ("fri 22:00-06:00", "2026-11-27 05:00", False),
    ("sun 22:00-06:00", "2026-11-30 03:00", True),
    ("22:00-24:00", "2026-11-27 23:59:59", True),
    ("22:00-24:00", "2026-11-28 00:00", False),
    # 2026-10-25 has one hour twice, 2026-03-29 lacks one
    ("02:00-03:00", "2026-10-25 02:30", True),
    ("sun 01:00-03:00", "2026-03-29 01:59", True),
    ("sun 01:00-03:00", "2026-03-29 03:00", False),
]


@pytest.mark.parametrize(("window", "moment", "expected"), MOMENTS)
def test_access_times_admit_clients_by_the_time_of_their_zone(
    window: str, moment: str, expected: bool
) -> None:
    assert AccessTimes([parse_window(window)], "Europe/Berlin").admits(at(moment)) is expected


def test_access_times_change_their_answer_at_the_exact_minute() -> None:
    times = AccessTimes([parse_window("08:00-08:02"), parse_window("08:03-08:04")], "UTC")
    start = at("2026-11-27 07:59", "UTC")
    seen = [times.admits(start + second) for second in range(0, 6 * 60, 20)]
    assert seen == [False] * 3 + [True] * 6 + [False] * 3 + [True] * 3 + [False] * 3


def test_access_times_without_a_window_admit_no_client() -> None:
    assert not AccessTimes([], "").admits(0)


def test_days_have_the_numbers_of_the_datetime_module() -> None:
    assert DAYS[datetime(2026, 11, 27).weekday()] == "fri"
