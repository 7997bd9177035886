"""The text form of durations: "30s", "1h30m", "250ms".

Runs in every process. Imports nothing large, so that a command with a time-out starts fast. Raises
ValueError with a text that names what was expected.
"""

from __future__ import annotations

import math
import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DURATION = r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|[smhd]))+"


def parse_duration(value: object) -> float:
    """Return the seconds of "30s", "1h30m" or "250ms"; the number 0 means none."""
    if value == 0 and not isinstance(value, bool):
        return 0.0
    if isinstance(value, str) and re.fullmatch(DURATION, value):
        parts = re.findall(r"([0-9.]+)(ms|[smhd])", value)
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
        if math.isfinite(seconds) and seconds <= 366 * 86400:
            return seconds
        raise ValueError("expected a duration of at most a year")
    raise ValueError('expected a duration such as "250ms", "30s", "5m", "1h30m" or "2d"')


def duration_text(seconds: float) -> str:
    """Return the text form of a duration, to the millisecond."""
    left, text = round(seconds * 1000), ""
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        count, left = divmod(left, length)
        text += f"{count}{unit}" if count else ""
    return text + (f"{left}ms" if left else "") or "0s"
