"""The times at which a service is open: `access-times` and `time-zone`.

Used in workers, on the accept path, and by `superd explain`. The constructor reads the time zone,
before confinement; nothing is read later. Raises ZoneInfoNotFoundError for an unknown zone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from superd.config.windows import Window

MINUTE = 60  # seconds


class AccessTimes:
    """The windows of one service; `zone` is "" for the time zone of the machine.

    A result is cached until the end of the minute: offsets of time zones are whole minutes.
    """

    def __init__(self, windows: Sequence[Window], zone: str) -> None:
        self.windows = windows
        self._zone = ZoneInfo(zone) if zone else None
        self._minute = -1
        self._answer = False

    def admits(self, now: float) -> bool:
        """Tell whether the service is open; `now` in seconds since 1970."""
        minute = int(now // MINUTE)
        if minute != self._minute:
            self._answer = self.window_at(now) is not None
            self._minute = minute
        return self._answer

    def window_at(self, now: float) -> int | None:
        """Return the index of the first window that is open, or None."""
        if self._zone is None:
            local = time.localtime(now)
            weekday, minute = local.tm_wday, local.tm_hour * 60 + local.tm_min
        else:
            moment = datetime.fromtimestamp(now, self._zone)
            weekday, minute = moment.weekday(), moment.hour * 60 + moment.minute
        for number, window in enumerate(self.windows):
            if window.contains(weekday, minute):
                return number
        return None
