"""`superd check`: a configuration is checked without serving.

Runs in the command line, as any user; plugins run in processes that are thrown away. Raises
ConfigurationError.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from superd.cli.files import configuration_file
from superd.config.loading import load
from superd.errors import ConfigurationError, ExitCode, Problem
from superd.master.rehearsal import rehearse
from superd.plugin.registry import installed

OK = "configuration OK"


def check(files: Sequence[Path]) -> int:
    """Check each file and raise all problems of all of them at once."""
    problems: list[Problem] = []
    plugins = installed()
    for file in files or [configuration_file(None)]:
        try:
            configuration = load(file)
        except ConfigurationError as error:
            problems += error.problems
            continue
        problems += rehearse(configuration, plugins, prepare=False).everything(configuration)
    if problems:
        raise ConfigurationError(problems)
    print(OK)
    return int(ExitCode.OK)
