"""How many clients each service had in a second of late: of about the last minute.

Runs in the master, whose loop turns anyway. Never raises.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from superd.admission.scoreboard import Scoreboard

INTERVAL = 5.0  # seconds
KEPT = 12  # looks: a minute


class Rates:
    """What services had accepted by some moments of the last minute."""

    def __init__(self, scoreboard: Scoreboard) -> None:
        self._scoreboard = scoreboard
        self._looks: deque[tuple[float, dict[str, int]]] = deque(maxlen=KEPT)

    def look(self, now: float, services: Collection[str]) -> None:
        """Note what services have accepted by now, where it is time for that."""
        if not self._looks or now >= self._looks[-1][0] + INTERVAL:
            accepted = {name: self._scoreboard.accepted(name) for name in services}
            self._looks.append((now, accepted))

    def rate(self, now: float, service: str) -> float | None:
        """Return how many it accepted in a second; None where it is too new to tell."""
        for then, accepted in self._looks:
            if service in accepted:
                if now - then < 1.0:
                    return None
                return (self._scoreboard.accepted(service) - accepted[service]) / (now - then)
        return None
