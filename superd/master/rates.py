"""The rate at which each service accepted clients, over about the last minute.

Runs in the master, at each of its checks. Raises nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from superd.admission.scoreboard import Scoreboard

SAMPLE_INTERVAL = 5.0  # seconds
KEPT_SAMPLES = 12  # one minute


class Rates:
    """Samples of how many clients services had accepted, each with its monotonic time."""

    def __init__(self, scoreboard: Scoreboard) -> None:
        self._scoreboard = scoreboard
        self._samples: deque[tuple[float, dict[str, int]]] = deque(maxlen=KEPT_SAMPLES)

    def sample(self, now: float, services: Collection[str]) -> None:
        """Take a sample if one is due."""
        if not self._samples or now >= self._samples[-1][0] + SAMPLE_INTERVAL:
            accepted = {name: self._scoreboard.accepted(name) for name in services}
            self._samples.append((now, accepted))

    def rate(self, now: float, service: str) -> float | None:
        """Return the clients accepted per second; None within a second of the first sample."""
        for then, accepted in self._samples:
            if service in accepted:
                if now - then < 1.0:
                    return None
                return (self._scoreboard.accepted(service) - accepted[service]) / (now - then)
        return None
