"""Adds the places in the configuration to the reasons why addresses cannot be bound.

Runs in the master. Reads no file: the texts of the configuration are parsed again, which takes too
long to do it before there is a failure. Raises nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from superd.config.loading import load_again
from superd.config.model import Settings
from superd.errors import ConfigurationError
from superd.listen.failures import CannotListen, Failure, lines_of


def located(error: CannotListen, settings: Settings, enabled: Mapping[str, bool]) -> CannotListen:
    """Return the error with file, line and column of each address."""
    return CannotListen(error.failures, located_lines(error.failures, settings, enabled))


def located_lines(
    failures: Iterable[Failure], settings: Settings, enabled: Mapping[str, bool]
) -> list[str]:
    """Return one line for each cause, with file, line and column. `enabled` are the overrides."""
    try:
        configuration = load_again(settings.file, settings.texts, enabled)
    except ConfigurationError:  # of `superd try`, which has no file
        return lines_of(failures)

    def place(failure: Failure) -> str:
        name, key = failure.service, failure.key
        if name not in configuration.partial.services:
            return f"service.{name}"
        if key == "listen":
            return str(configuration.address_problem(name, failure.address, ""))
        return str(configuration.problem(name, (key,), ""))

    return lines_of(failures, place)
