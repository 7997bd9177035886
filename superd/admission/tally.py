"""All that stands in memory which the master shares with its workers.

Made by the master before it forks. The program after an upgrade goes on with the same memory, so
that limits and totals outlive this one. Raises ValueError where it cannot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from superd.admission.bans import SLOTS as BAN_SLOTS
from superd.admission.bans import BanTable
from superd.admission.ledger import SLOTS, Ledger
from superd.admission.scoreboard import Roster, Scoreboard, columns

_LAYOUT = [*columns(), f"{SLOTS} sources", f"{BAN_SLOTS} bans"]


class Tally:
    """The roster of services and places, what is counted of them, and who is banned."""

    def __init__(
        self,
        roster: Roster,
        scoreboard: int | None = None,
        ledger: int | None = None,
        bans: int | None = None,
    ) -> None:
        self.roster = roster
        self.scoreboard = Scoreboard(roster, scoreboard)
        self.ledger = Ledger(roster, ledger)
        self.bans = BanTable(bans)

    @classmethod
    def of(cls, services: Sequence[str], places: int) -> Tally:
        """Return a new one for these services and so many workers, with room for more."""
        return cls(Roster.of(services, places))

    def passed_on(self) -> dict[str, Any]:
        """Return as JSON what another program needs to go on with the same memory."""
        return {
            "layout": _LAYOUT,
            "capacity": self.roster.capacity,
            "places": self.roster.places,
            "numbers": self.roster.numbers,
            "scoreboard": self.scoreboard.memory.descriptor,
            "ledger": self.ledger.memory.descriptor,
            "bans": self.bans.memory.descriptor,
        }

    @classmethod
    def taken_up(cls, passed: Mapping[str, Any]) -> Tally:
        """Go on with the memory of another program."""
        if passed["layout"] != _LAYOUT:
            raise ValueError("the counters of the other program are arranged in another way")
        roster = Roster(passed["capacity"], passed["places"], passed["numbers"])
        return cls(roster, passed["scoreboard"], passed["ledger"], passed["bans"])
