"""Which configuration is meant, what is not in it, and where its daemon's files are when it does
not say.

Runs in the command line. Raises ConfigurationError.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from superd.config.loading import Configuration, load, load_again
from superd.config.model import Settings
from superd.config.values import did_you_mean
from superd.errors import ConfigurationError, Problem, UsageError, shown
from superd.master.pidfile import holder

SYSTEM_DIRECTORY = Path("/run/superd")
SYSTEM_STATE = Path("/var/lib/superd")


def configuration_file(named: Path | None) -> Path:
    """Return the file that is named, or the usual one, which has to be there."""
    file = _usual_file() if named is None else named
    if named is None and not os.path.lexists(file):
        message = "there is no such file; name another with -c FILE or $SUPERD_CONFIG"
        raise ConfigurationError([Problem(str(file), 0, 0, "", message)])
    return file


def _usual_file() -> Path:
    """Return the file that $SUPERD_CONFIG or the custom of the place names."""
    if from_environment := os.environ.get("SUPERD_CONFIG"):
        return Path(from_environment)
    if os.geteuid() == 0:
        return Path("/etc/superd.toml")
    home = _home("XDG_CONFIG_HOME", "~/.config")
    return Path("/etc/superd.toml") if home is None else Path(home, "superd/superd.toml")


def read(named: Path | None) -> Configuration:
    """Read the configuration and fill in where its pid file and control socket are."""
    return with_runtime_files(load(configuration_file(named)))


def daemon_of(named: Path | None) -> Settings:
    """Return the settings of a daemon that may be running. Mistakes made since its start do not
    matter: where its file cannot be read any more, it is looked for in the usual places.
    """
    try:
        return read(named).partial
    except ConfigurationError:
        file = _usual_file() if named is None else named
        usual = with_runtime_files(load_again(file, {str(file): ""})).partial
        if usual.daemon.pid_file is None or holder(usual.daemon.pid_file) is None:
            raise
        return usual


def no_service(name: str, services: Iterable[str]) -> UsageError:
    """Return what to say where a service is named that is none of these."""
    hint = did_you_mean(name, list(services))
    return UsageError(f"there is no service {shown(name)}{hint}")


def with_runtime_files(configuration: Configuration) -> Configuration:
    """Fill in where pid file, control socket and bans are, named after the configuration's file."""
    settings = configuration.partial
    directory = runtime_directory()
    name = settings.file.stem
    daemon = settings.daemon.model_copy(
        update={
            "pid_file": settings.daemon.pid_file or directory / f"{name}.pid",
            "control_socket": settings.daemon.control_socket or directory / f"{name}.sock",
            "ban_file": settings.daemon.ban_file or state_directory() / f"{name}.bans",
        }
    )
    return replace(configuration, partial=settings.model_copy(update={"daemon": daemon}))


def runtime_directory() -> Path:
    """Return what systemd has made, or /run/superd, or what stands for it for another user."""
    if made := _made_by_systemd("RUNTIME_DIRECTORY"):
        return made
    if os.geteuid() == 0:
        return SYSTEM_DIRECTORY
    for parent in (os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{os.geteuid()}"):
        if parent and os.access(parent, os.W_OK):
            return Path(parent, "superd")
    home = _home("XDG_STATE_HOME", "~/.local/state")
    return SYSTEM_DIRECTORY if home is None else Path(home, "superd")


def state_directory() -> Path:
    """Return what systemd has made, or /var/lib/superd, or what stands for it for another user."""
    if made := _made_by_systemd("STATE_DIRECTORY"):
        return made
    home = None if os.geteuid() == 0 else _home("XDG_STATE_HOME", "~/.local/state")
    return SYSTEM_STATE if home is None else Path(home, "superd")


def _made_by_systemd(variable: str) -> Path | None:
    """Return the first directory that a unit names (RuntimeDirectory=, StateDirectory=)."""
    first = os.environ.get(variable, "").partition(":")[0]
    return Path(first) if first.startswith("/") else None


def _home(variable: str, custom: str) -> Path | None:
    """Return a directory of the user's; None where the user has no home, as in a container."""
    with contextlib.suppress(RuntimeError):
        return Path(os.environ.get(variable) or Path(custom).expanduser())
    return None
