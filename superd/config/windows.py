"""The times at which a service is open, as values: parse, format, compare.

Used wherever a configuration is read, and in workers. Knows no time zone and never reads the clock.
Raises ValueError with a text for the operator.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from superd.errors import shown

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")  # as tm_wday counts them
DAY = 24 * 60  # minutes

_EVERY_DAY = frozenset(range(7))
_FORM = 'expected days and hours, such as "mon-fri 08:00-18:00", "sat,sun" or "22:00-06:00"'


@dataclass(frozen=True)
class Window:
    """Days of the week, and a part of each: from `start` to before `end`, in minutes. A window that
    ends before it starts continues on the next day.
    """

    days: frozenset[int] = _EVERY_DAY
    start: int = 0
    end: int = DAY

    def contains(self, weekday: int, minute: int) -> bool:
        """Tell whether a minute of a day is in the window; `weekday` is 0 on Monday."""
        if self.start < self.end:
            return weekday in self.days and self.start <= minute < self.end
        if minute >= self.start:
            return weekday in self.days
        return minute < self.end and (weekday - 1) % 7 in self.days

    def __str__(self) -> str:
        days = "" if self.days == _EVERY_DAY else ",".join(_runs(sorted(self.days)))
        hours = f"{_clock(self.start)}-{_clock(self.end)}"
        return f"{days} {hours}".strip()


def _runs(days: list[int]) -> Iterator[str]:
    """Yield the text form of days; three or more in a row are a range."""
    while days:
        length = next((n for n, day in enumerate(days) if day != days[0] + n), len(days))
        run, days = days[:length], days[length:]
        if length > 2:
            yield f"{DAYS[run[0]]}-{DAYS[run[-1]]}"
        else:
            yield from (DAYS[day] for day in run)


def parse_window(text: str) -> Window:
    """Return the window of a text.

    >>> str(parse_window("fri-sun 22:00-6:00"))
    'fri,sat,sun 22:00-06:00'
    """
    words = text.lower().split()
    if not 1 <= len(words) <= 2:
        raise ValueError(_FORM)
    days, start, end = _EVERY_DAY, 0, DAY
    if not words[0][0].isdigit():
        days = frozenset(day for part in words.pop(0).split(",") for day in _days(part))
    if words:
        start, end = _hours(words.pop(0))
    if words:
        raise ValueError(_FORM)
    return Window(days, start, end)


def _days(text: str) -> list[int]:
    first, hyphen, last = text.partition("-")
    start = _day(first)
    length = (_day(last) - start) % 7 + 1 if hyphen else 1
    return [(start + n) % 7 for n in range(length)]


def _day(text: str) -> int:
    if text[:3] not in DAYS or text not in (text[:3], _LONG[text[:3]]):
        raise ValueError(f"{shown(text)} is not a day; they are {', '.join(DAYS)}")
    return DAYS.index(text[:3])


_LONG = {
    name[:3]: name
    for name in ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
}


def _hours(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,2}):([0-9]{2})-([0-9]{1,2}):([0-9]{2})", text)
    if match is None:
        raise ValueError(_FORM)
    start, end = (_minutes(*match.group(n, n + 1)) for n in (1, 3))
    if start == DAY:
        raise ValueError("24:00 is the end of a day; its start is 00:00")
    if start == end:
        raise ValueError(f"{shown(text)} is empty; the whole day is 00:00-24:00")
    return start, end


def _minutes(hours: str, minutes: str) -> int:
    total = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or total > DAY:
        raise ValueError(f"expected a time from 00:00 to 24:00, found {hours}:{minutes}")
    return total


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"
