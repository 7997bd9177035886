"""Looks up the hosts' names that services listen on.

Runs in the master before it serves, in its children, and in the command line. Each name is looked
up in a child process of its own, as getaddrinfo(3) cannot be interrupted. Takes a bounded time.
Raises nothing: an answer says why there is no address.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from superd.config.model import Service
from superd.errors import ExitCode
from superd.net.addresses import Address, unmapped
from superd.process.isolated import run_isolated

LOOKUP_TIMEOUT = 5.0  # seconds for all names together
# getaddrinfo(3): the name servers have answered, so asking again would hardly help
PERMANENT_ERRORS = (socket.EAI_NONAME, socket.EAI_NODATA, getattr(socket, "EAI_ADDRFAMILY", -9))


@dataclass(frozen=True)
class Answer:
    """The numeric hosts of a name; `failure` says why there are none."""

    hosts: tuple[str, ...] = ()
    failure: str = ""
    is_temporary: bool = False

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.TEMPORARY if self.is_temporary else ExitCode.CONFIGURATION


Answers = Mapping[str, Answer]  # by name

NOT_ASKED = Answer(failure="its name has not been looked up yet", is_temporary=True)
NO_ANSWERS: Answers = MappingProxyType({})


def names_in(services: Mapping[str, Service]) -> set[str]:
    """Return the names that services listen on."""
    return {one.host for entry in services.values() for one in entry.listen if one.is_name}


def look_up(names: Iterable[str], timeout: float = LOOKUP_TIMEOUT) -> dict[str, Answer]:
    """Return the answers for all names, which are looked up at the same time."""
    outcomes = run_isolated({name: partial(_look_up, name) for name in names}, timeout)
    return {
        name: _temporary(name, one.failure) if one.failure else answer_of(one.result)
        for name, one in outcomes.items()
    }


def _temporary(name: str, why: str) -> Answer:
    return Answer(failure=f"cannot look up {name} now: {why}", is_temporary=True)


def look_up_as_json(names: Iterable[str]) -> dict[str, Any]:
    """Do `look_up`; return its result as JSON for `answer_of`."""
    return {name: asdict(answer) for name, answer in look_up(names).items()}


def answer_of(passed: Mapping[str, Any]) -> Answer:
    """Return the answer that was passed as JSON."""
    return Answer(**{**passed, "hosts": tuple(passed["hosts"])})


def _look_up(name: str) -> dict[str, Any]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno not in PERMANENT_ERRORS:
            return asdict(_temporary(name, str(error.strerror)))
        return asdict(Answer(failure=f"there is no host {name}: {error.strerror}"))
    except (OSError, ValueError) as error:  # UnicodeError for what can be no name
        return asdict(Answer(failure=f"there is no host {name}: {error}"))
    hosts = dict.fromkeys(unmapped(str(entry[4][0])) for entry in found)
    return asdict(Answer(tuple(hosts)))


def hosts_of(address: Address, answers: Answers) -> tuple[Address, ...]:
    """Return an address at each host of its name; the address itself if there is no answer."""
    hosts = answers.get(address.host, NOT_ASKED).hosts
    return tuple(address.at(host, address.host) for host in hosts) or (address,)
