"""The bans of this superd: each with its end, author and reason, and the file that saves them.

Runs in the master; workers read the table that it writes. Raises nothing: a file that is damaged or
cannot be written is logged, and the bans stay in force.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from heapq import nsmallest
from pathlib import Path
from typing import Any

from superd.admission.bans import MAX_BANS, BanTable
from superd.errors import printable, reason
from superd.master.logs.log import Log
from superd.net.patterns import IPNetwork, parse_network, shown_network

LONGEST_BAN = 366 * 86400.0  # seconds
LONGEST_REASON = 200  # characters
SAVE_INTERVAL = 1.0  # seconds between two writes of the file
FULL_WARNING_INTERVAL = 60.0  # seconds between two warnings that the table is full
FILE_MODE = 0o600
OPERATOR = "operator"  # author of the bans that no plugin made


@dataclass(frozen=True)
class Ban:
    """One ban; `until` is in seconds since 1970."""

    network: IPNetwork
    until: float
    by: str
    reason: str = ""


class Bans:
    """All bans, their table and their file. After an upgrade they are those that the program before
    has `listed`, and the file is not read: it may have bans that were lifted since.
    """

    def __init__(
        self, path: Path | None, log: Log, table: BanTable, listed: Iterable[Any] | None = None
    ) -> None:
        self.table = table
        self._path = path
        self._protected: Collection[IPNetwork] = ()
        self._log = log
        self._bans: dict[IPNetwork, Ban] = {}
        self.changes = 0  # bans that were added or lifted
        self._is_saved = True
        self._save_at = 0.0
        self._warn_full_at = 0.0
        if listed is not None:
            self._take_over(map(ban_of, listed))
        elif path is not None:
            self._read(path)

    def __iter__(self) -> Iterator[Ban]:
        return iter(self._bans.values())

    def __len__(self) -> int:
        return len(self._bans)

    def __contains__(self, network: IPNetwork) -> bool:
        return network in self._bans

    def protect(self, networks: Collection[IPNetwork]) -> None:
        """Refuse bans that overlap these networks, and lift those that do."""
        self._protected = networks
        for network in [one for one in self._bans if self.protecting(one) is not None]:
            self.lift(network)

    def listed(self) -> list[dict[str, Any]]:
        """Return all bans as JSON, ordered by their end."""
        ordered = sorted(self._bans.values(), key=lambda ban: ban.until)
        return [_as_json(ban) for ban in ordered]

    def protecting(self, network: IPNetwork) -> IPNetwork | None:
        """Return the network of never-ban that a ban would overlap."""
        for one in self._protected:
            if one.version == network.version and one.overlaps(network):
                return one
        return None

    def add(self, network: IPNetwork, seconds: float, by: str, why: str) -> str:
        """Ban a network; return why this is impossible, or "". A plugin cannot replace the ban of
        an operator: it stays as it is, and a table full of such bans has no room for a plugin's.
        """
        if (protected := self.protecting(network)) is not None:
            names = shown_network(network), shown_network(protected)
            return "{} is protected by never-ban ({})".format(*names)
        if not 0 < seconds <= LONGEST_BAN:
            return f"expected a ban of more than 0 s and at most 366 days, found {seconds:g} s"
        if by != OPERATOR and network in self._bans and self._bans[network].by == OPERATOR:
            return ""
        ban = Ban(network, time.time() + seconds, by, printable(why)[:LONGEST_REASON])
        return "" if self._enter(ban) else "there is no room for another ban; lift one first"

    def lift(self, network: IPNetwork) -> bool:
        """End a ban; return whether there was one."""
        if self._bans.pop(network, None) is None:
            return False
        self.table.remove(network)
        self.changes += 1
        self._is_saved = False
        return True

    def tick(self, now: float) -> None:
        """Lift bans that are over, and write the file if it is due; `now` is monotonic time."""
        wall = time.time()
        over = [ban.network for ban in self._bans.values() if ban.until <= wall]
        for network in over:
            self.lift(network)
        if not self._is_saved and now >= self._save_at:
            self._save_at = now + SAVE_INTERVAL
            self.save()

    def save(self) -> None:
        """Write the file, if the bans have changed."""
        if self._path is None or self._is_saved:
            return
        self._is_saved = True
        text = "".join(f"{json.dumps(_as_json(ban))}\n" for ban in self._bans.values())
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
            with open(descriptor, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            os.replace(fresh, self._path)
        except OSError as error:
            self._log.error(f"cannot save bans to {self._path}: {reason(error)}")

    def _enter(self, ban: Ban) -> bool:
        if ban.network not in self._bans and len(self._bans) >= MAX_BANS:
            self._make_room(by_operator=ban.by == OPERATOR)
            if len(self._bans) >= MAX_BANS:
                return False
        left = max(0.0, ban.until - time.time())
        if not self.table.add(ban.network, time.monotonic_ns() + int(left * 1e9)):
            return False
        self._bans[ban.network] = ban
        self.changes += 1
        self._is_saved = False
        return True

    def _take_over(self, bans: Iterable[Ban]) -> None:
        for ban in bans:
            if self.table.adopt(ban.network):
                self._bans[ban.network] = ban
            else:  # the table is new
                self._enter(ban)

    def _make_room(self, *, by_operator: bool) -> None:
        """Lift the bans of plugins that would end first. For an operator's ban, if plugins have
        none, lift those of operators. One hundredth at a time, since the search is slow.
        """
        bans = [ban for ban in self._bans.values() if ban.by != OPERATOR]
        if not bans and by_operator:
            bans = list(self._bans.values())
        for ban in nsmallest(MAX_BANS // 100, bans, key=lambda ban: ban.until):
            self.lift(ban.network)
        now = time.monotonic()
        if bans and now >= self._warn_full_at:
            self._warn_full_at = now + FULL_WARNING_INTERVAL
            self._log.warning(
                f"there are {MAX_BANS} bans, the most possible; the next to end are lifted early"
            )

    def _read(self, path: Path) -> None:
        try:
            lines = path.read_bytes().decode(errors="backslashreplace").splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            self._log.error(f"cannot read bans from {path}: {reason(error)}")
            return
        damaged = 0
        for number, line in enumerate(lines, 1):
            try:
                ban = ban_of(json.loads(line))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                damaged += 1
                if damaged == 1:
                    self._log.error(f"{path}:{number}: not a saved ban: {reason(error)}")
            else:
                if ban.until > time.time():
                    self._enter(ban)
        self._is_saved = not damaged and len(self._bans) == len(lines)
        if damaged:
            self._set_aside(path, damaged)

    def _set_aside(self, path: Path, damaged: int) -> None:
        aside = path.with_name(path.name + ".damaged")
        try:
            os.replace(path, aside)
        except OSError as error:
            self._log.error(f"cannot rename {path}, which has damaged lines: {reason(error)}")
        else:
            self._log.error(f"{path} has {damaged} damaged lines; it is renamed to {aside}")


def saved(path: Path) -> list[Ban]:
    """Return the bans that a file has, without its damaged lines."""
    bans = []
    with contextlib.suppress(OSError):
        for line in path.read_bytes().decode(errors="backslashreplace").splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                bans.append(ban_of(json.loads(line)))
    return bans


def ban_of(data: Any) -> Ban:
    """Return a ban from JSON; ValueError, TypeError or KeyError if it is invalid."""
    until, by, why = data["until"], data["by"], data.get("reason", "")
    is_number = isinstance(until, (int, float)) and not isinstance(until, bool)
    if not (is_number and 0 < until < 1e11 and isinstance(by, str) and isinstance(why, str)):
        raise ValueError("invalid value in a saved ban")
    return Ban(
        parse_network(data["network"]),
        min(float(until), time.time() + LONGEST_BAN),
        printable(by),
        printable(why)[:LONGEST_REASON],
    )


def _as_json(ban: Ban) -> dict[str, Any]:
    return {**asdict(ban), "network": shown_network(ban.network)}
