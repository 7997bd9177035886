"""Formats numbers for people: sizes and times in few characters.

Runs in the command line. Raises nothing.
"""

from __future__ import annotations

from itertools import pairwise

UNKNOWN = "-"
SIZE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
TIME_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def size(number: float) -> str:
    """Return a number of bytes: `512B`, `1.5KiB`."""
    for unit in SIZE_UNITS[:-1]:
        if number < 1000:
            return f"{number:.0f}{unit}" if unit == "B" else f"{number:.1f}{unit}"
        number /= 1024
    return f"{number:.1f}{SIZE_UNITS[-1]}"


def age(seconds: float) -> str:
    """Return a duration in its two largest units: `3d4h`, `2m5s`, `0.25s`."""
    if seconds < 10:
        return f"{seconds:.2f}s"
    for (length, unit), (shorter, smaller) in pairwise(TIME_UNITS):
        if seconds >= length:
            rest = int(seconds % length // shorter)
            return f"{seconds // length:.0f}{unit}" + (f"{rest}{smaller}" if rest else "")
    return f"{seconds:.0f}s"
