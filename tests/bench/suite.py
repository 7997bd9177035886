"""What a suite is: servers that do the same things, the works they are put to, and goals.

All that differs between two suites stands in one of these; how servers are run, loaded and
reported on is the same for each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.bench.goals import Goal, Results
from tests.bench.load import Work
from tests.bench.servers import Server


@dataclass(frozen=True)
class Suite:
    """Servers by name (of the peers each may be missing), works, and what is expected.

    `idle` names the servers that hold `idle_connections`, `ready` the one whose start is timed.
    """

    name: str
    own: Mapping[str, Callable[[], Server]]
    peers: Mapping[str, Callable[[], Server]]
    works: tuple[Work, ...]
    idle: tuple[str, ...]
    idle_connections: int
    judge: Callable[[Results], list[Goal]]
    ready: str = ""

    @property
    def servers(self) -> dict[str, Callable[[], Server]]:
        return {**self.own, **self.peers}

    @property
    def work_names(self) -> list[str]:
        return [work.name for work in self.works] + ["idle"] + (["ready"] if self.ready else [])
