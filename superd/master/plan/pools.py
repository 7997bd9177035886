"""Which services share workers, and what confinement this superd can really give them.

Runs in the master, before it binds. Raises NotPermitted where confinement is required and cannot
be had, SuperdError where it cannot be told who to become.
"""

from __future__ import annotations

import itertools
import os
import pwd
import resource
from collections.abc import Container, Mapping
from dataclasses import dataclass

from superd.config.model import Confinement, Service, Settings
from superd.errors import NotPermitted, SuperdError
from superd.process.confinement import RLIMITS

NOBODY = "nobody"


@dataclass(frozen=True)
class Pool:
    """Services of one confinement, and how many workers serve them. Those that fork have a worker
    of their own, since a process has a copy of all that its worker has.
    """

    name: str
    confinement: Confinement
    services: Mapping[str, Service]
    workers: int


def pools_of(settings: Settings, services: Mapping[str, Service]) -> tuple[list[Pool], list[str]]:
    """Return the pools of `services`, and what the operator ought to know of their confinement."""
    is_root = os.geteuid() == 0
    left_out: dict[str, None] = {}
    groups: dict[tuple[Confinement, bool], dict[str, Service]] = {}
    for name, service in services.items():
        confinement = service.confinement
        if is_root:
            confinement = _with_identity(confinement)
        else:
            left_out |= dict.fromkeys(_beyond_a_user(confinement))
            confinement = _of_a_user(confinement)
        groups.setdefault((confinement, service.forks), {})[name] = service
    keys = ", ".join(left_out)
    if left_out and settings.daemon.confinement == "require":
        raise NotPermitted(f'confinement = "require", and superd is not root: cannot give {keys}')
    workers = settings.daemon.workers
    count = _cores() if workers == "auto" else workers
    names: set[str] = set()
    pools = []
    for (confinement, forks), members in groups.items():
        name = _name(confinement, names, forks=forks)
        pools.append(Pool(name, confinement, members, 1 if forks else count))
        names.add(name)
    notices = []
    if left_out:
        notices.append(f"not root, so this confinement is left out: {keys}")
    if roots := [name for pool in pools if pool.confinement.user == 0 for name in pool.services]:
        notices.append(f'user = "root", so these services keep every privilege: {", ".join(roots)}')
    return pools, notices


def _cores() -> int:
    """Return how many cores this process may use, which in a container are often not all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _with_identity(confinement: Confinement) -> Confinement:
    """Fill in who a worker of root becomes: nobody, unless the entry says otherwise."""
    user = nobody()[0] if confinement.user is None else confinement.user
    group = confinement.group
    if group is None:
        try:
            group = pwd.getpwuid(user).pw_gid
        except KeyError:
            group = user  # a number without a name: its group has the same number
    return confinement.model_copy(update={"user": user, "group": group})


def nobody() -> tuple[int, int]:
    """Return user and group of who may do nothing."""
    try:
        entry = pwd.getpwnam(NOBODY)
        return entry.pw_uid, entry.pw_gid
    except KeyError:
        text = f'there is no user "{NOBODY}" here: each service has to say user = "..."'
        raise SuperdError(text) from None


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
    if _nice_too_low(confinement):
        keys.append("nice")
    return keys + [f"rlimits.{name.replace('_', '-')}" for name in _limits_too_high(confinement)]


def _of_a_user(confinement: Confinement) -> Confinement:
    """Return the confinement without what only root could give."""
    update: dict[str, object] = {"user": None, "group": None, "groups": (), "chroot": ""}
    if _nice_too_low(confinement):
        update["nice"] = 0
    left_out = dict.fromkeys(_limits_too_high(confinement))
    update["rlimits"] = confinement.rlimits.model_copy(update=left_out)
    return confinement.model_copy(update=update)


def _nice_too_low(confinement: Confinement) -> bool:
    """Anybody may be nicer than now. 0 is what is not asked for: then it stays as it is."""
    return confinement.nice != 0 and confinement.nice < os.getpriority(os.PRIO_PROCESS, 0)


def _limits_too_high(confinement: Confinement) -> list[str]:
    """Return the names of limits above those that this process cannot exceed itself."""
    found = []
    for name, number in RLIMITS.items():
        wanted = getattr(confinement.rlimits, name)
        hard = resource.getrlimit(number)[1]
        if wanted is not None and hard != resource.RLIM_INFINITY and wanted > hard:
            found.append(name)
    return found


def _name(confinement: Confinement, taken: Container[str], *, forks: bool) -> str:
    """Return a name for the process list: the pool's own, its user's, or "default"."""
    name = confinement.pool or "default"
    if not confinement.pool and confinement.user is not None:
        try:
            name = pwd.getpwuid(confinement.user).pw_name
        except KeyError:
            name = str(confinement.user)
    name = f"{name}-fork" if forks else name
    numbered = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return next(candidate for candidate in numbered if candidate not in taken)
