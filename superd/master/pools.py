"""Which services share workers, and what confinement this superd can really give them.

Runs in the master, before it binds. Raises NotPermitted where confinement is required and cannot
be had.
"""

from __future__ import annotations

import os
import pwd
import resource
from collections.abc import Mapping
from dataclasses import dataclass

from superd.config.model import Confinement, Service, Settings
from superd.errors import NotPermitted

NOBODY = "nobody"


@dataclass(frozen=True)
class Pool:
    """Services of one confinement, and how many workers serve them."""

    name: str
    confinement: Confinement
    services: Mapping[str, Service]
    workers: int


def pools_of(settings: Settings, services: Mapping[str, Service]) -> tuple[list[Pool], list[str]]:
    """Return the pools of `services`, and what confinement had to be left out."""
    is_root = os.geteuid() == 0
    left_out: dict[str, None] = {}
    groups: dict[Confinement, dict[str, Service]] = {}
    for name, service in services.items():
        confinement = service.confinement
        if is_root:
            confinement = _with_identity(confinement)
        else:
            left_out |= dict.fromkeys(_beyond_a_user(confinement))
            confinement = _of_a_user(confinement)
        groups.setdefault(confinement, {})[name] = service
    if left_out and settings.daemon.confinement == "require":
        keys = ", ".join(left_out)
        raise NotPermitted(f'confinement = "require", and superd is not root: cannot give {keys}')
    workers = settings.daemon.workers
    count = (os.cpu_count() or 1) if workers == "auto" else workers
    names: dict[str, int] = {}
    pools = []
    for confinement, members in groups.items():
        pools.append(Pool(_name(confinement, names), confinement, members, count))
    return pools, list(left_out)


def _with_identity(confinement: Confinement) -> Confinement:
    """Fill in who a worker of root becomes: nobody, unless the entry says otherwise."""
    user = pwd.getpwnam(NOBODY).pw_uid if confinement.user is None else confinement.user
    group = confinement.group
    if group is None:
        try:
            group = pwd.getpwuid(user).pw_gid
        except KeyError:
            group = user  # a number without a name: its group has the same number
    return confinement.model_copy(update={"user": user, "group": group})


def _beyond_a_user(confinement: Confinement) -> list[str]:
    """Return the keys that only root could honour."""
    keys = []
    if confinement.user not in (None, os.geteuid()):
        keys.append("user")
    if confinement.group not in (None, os.getegid()):
        keys.append("group")
    if confinement.groups:
        keys.append("groups")
    if confinement.chroot:
        keys.append("chroot")
    if confinement.nice < os.getpriority(os.PRIO_PROCESS, 0):
        keys.append("nice")
    if _nofile_too_high(confinement):
        keys.append("rlimits.nofile")
    return keys


def _of_a_user(confinement: Confinement) -> Confinement:
    """Return the confinement without what only root could give."""
    update: dict[str, object] = {"user": None, "group": None, "groups": (), "chroot": ""}
    if confinement.nice < os.getpriority(os.PRIO_PROCESS, 0):
        update["nice"] = 0
    if _nofile_too_high(confinement):
        update["rlimits"] = confinement.rlimits.model_copy(update={"nofile": None})
    return confinement.model_copy(update=update)


def _nofile_too_high(confinement: Confinement) -> bool:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = confinement.rlimits.nofile
    return wanted is not None and hard != resource.RLIM_INFINITY and wanted > hard


def _name(confinement: Confinement, taken: dict[str, int]) -> str:
    """Return a name for the process list: the pool's own, its user's, or "default"."""
    name = confinement.pool or "default"
    if not confinement.pool and confinement.user is not None:
        try:
            name = pwd.getpwuid(confinement.user).pw_name
        except KeyError:
            name = str(confinement.user)
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}-{taken[name]}"
