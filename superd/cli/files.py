"""Which configuration is meant, and where its daemon's files are when it does not say.

Runs in the command line. Raises ConfigurationError.
"""

from __future__ import annotations

import os
from pathlib import Path

from superd.config.loading import Configuration, load


def configuration_file(named: Path | None) -> Path:
    """Return the file that -c, $SUPERD_CONFIG or the custom of the place names."""
    if named is not None:
        return named
    if from_environment := os.environ.get("SUPERD_CONFIG"):
        return Path(from_environment)
    if os.geteuid() == 0:
        return Path("/etc/superd.toml")
    home = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    return Path(home, "superd/superd.toml")


def read(named: Path | None) -> Configuration:
    """Read the configuration and fill in where its pid file and control socket are."""
    configuration = load(configuration_file(named))
    settings = configuration.settings
    directory = runtime_directory()
    name = settings.file.stem
    daemon = settings.daemon.model_copy(
        update={
            "pid_file": settings.daemon.pid_file or directory / f"{name}.pid",
            "control_socket": settings.daemon.control_socket or directory / f"{name}.sock",
        }
    )
    settings = settings.model_copy(update={"daemon": daemon})
    return Configuration(settings, configuration.locate)


def runtime_directory() -> Path:
    """Return /run/superd, or what stands for it for another user than root."""
    if os.geteuid() == 0:
        return Path("/run/superd")
    for parent in (os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{os.geteuid()}"):
        if parent and os.access(parent, os.W_OK):
            return Path(parent, "superd")
    home = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(home, "superd")
