"""A suite: comparable servers, the workloads to run on them, and goals.

A suite holds everything that differs between suites. Running, loading and reporting is the same
for each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.bench.goals import Goal, Results
from tests.bench.load import Workload
from tests.bench.servers import Server


@dataclass(frozen=True)
class Suite:
    """Servers by name (any peer may be missing), workloads, and goals.

    `idle` names the servers that get `idle_connections`, `ready` the server whose start is timed.
    """

    name: str
    own: Mapping[str, Callable[[], Server]]
    peers: Mapping[str, Callable[[], Server]]
    works: tuple[Workload, ...]
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
