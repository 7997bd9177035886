"""Numbers for a person: sizes, rates and spans of time in few characters.

Runs in the command line. Never raises.
"""

from __future__ import annotations

from itertools import pairwise

UNKNOWN = "-"
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
SPANS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def size(number: float) -> str:
    """Return a number of bytes: `512B`, `1.5KiB`."""
    for unit in UNITS[:-1]:
        if number < 1000:
            return f"{number:.0f}{unit}" if unit == "B" else f"{number:.1f}{unit}"
        number /= 1024
    return f"{number:.1f}{UNITS[-1]}"


def age(seconds: float) -> str:
    """Return a span of time, its two largest units: `3d4h`, `2m5s`, `0.25s`."""
    if seconds < 10:
        return f"{seconds:.2f}s"
    for (length, unit), (shorter, smaller) in pairwise(SPANS):
        if seconds >= length:
            rest = int(seconds % length // shorter)
            return f"{seconds // length:.0f}{unit}" + (f"{rest}{smaller}" if rest else "")
    return f"{seconds:.0f}s"
