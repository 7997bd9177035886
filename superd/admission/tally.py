"""All memory that the master shares with its workers.

The master makes it before it forks. After an upgrade the new program uses the same memory, so
limits and totals survive. Raises ValueError where the new program cannot use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from superd.admission.bans import SLOTS as BAN_SLOTS
from superd.admission.bans import BanTable
from superd.admission.ledger import SLOTS, Ledger
from superd.admission.scoreboard import Roster, Scoreboard, columns

_LAYOUT = [*columns(), f"{SLOTS} sources by level", f"{BAN_SLOTS} bans by level"]


class Tally:
    """The roster of services and workers, the scoreboard, the ledger and the table of bans."""

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
    def of(cls, services: Sequence[str], workers: int) -> Tally:
        """Return a new tally for these services and so many workers, with room for more."""
        return cls(Roster.of(services, workers))

    def as_state(self) -> dict[str, Any]:
        """Return what another program needs to use the same memory, as JSON."""
        return {
            "layout": _LAYOUT,
            "capacity": self.roster.capacity,
            "places": self.roster.worker_slots,
            "numbers": self.roster.numbers,
            "scoreboard": self.scoreboard.memory.descriptor,
            "ledger": self.ledger.memory.descriptor,
            "bans": self.bans.memory.descriptor,
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Tally:
        """Use the memory of another program; ValueError where its layout is not this program's."""
        if state["layout"] != _LAYOUT:
            raise ValueError("the counters of the other program have another layout")
        roster = Roster(state["capacity"], state["places"], state["numbers"])
        return cls(roster, state["scoreboard"], state["ledger"], state["bans"])
