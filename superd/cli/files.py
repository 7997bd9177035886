"""Finds the configuration file, and the runtime files of its daemon.

Runs in the command line. To find a daemon it reads the [daemon] table of the main file and nothing
else, so that no mistake, not even in TOML's syntax, keeps an operator from the daemon. Raises
ConfigurationError.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli
from pydantic import ValidationError

from superd.config.loading import Configuration, load
from superd.config.model import Daemon
from superd.config.reading import document_of, read_text
from superd.config.values import did_you_mean
from superd.errors import ConfigurationError, Problem, UsageError, shown
from superd.master.pidfile import holder

SYSTEM_DIRECTORY = Path("/run/superd")
SYSTEM_STATE = Path("/var/lib/superd")


@dataclass(frozen=True)
class DaemonFiles:
    """The files by which a command finds the daemon of a configuration."""

    configuration: Path
    pid_file: Path
    control_socket: Path
    drain_timeout: float  # seconds that connections may take to finish after a stop


def configuration_file(named: Path | None) -> Path:
    """Return the named configuration file, else the default one, which has to exist."""
    file = _default_file() if named is None else named
    if named is None and not os.path.lexists(file):
        message = "there is no such file; name another with -c FILE or $SUPERD_CONFIG"
        raise ConfigurationError([Problem(str(file), 0, 0, "", message)])
    return file


def _default_file() -> Path:
    """Return $SUPERD_CONFIG, else the default of root or of the user."""
    if from_environment := os.environ.get("SUPERD_CONFIG"):
        return Path(from_environment)
    if os.geteuid() == 0:
        return Path("/etc/superd.toml")
    home = _home("XDG_CONFIG_HOME", "~/.config")
    return Path("/etc/superd.toml") if home is None else Path(home, "superd/superd.toml")


def read(named: Path | None) -> Configuration:
    """Read the configuration and fill in the default paths of its runtime files."""
    return with_runtime_files(load(configuration_file(named)))


def daemon_files(named: Path | None) -> DaemonFiles:
    """Return the files of a daemon that may be running.

    A wrong value in [daemon] is ignored here, as a running daemon has read the file without it. If
    the file is no TOML, such as while it is edited, those lines of [daemon] count that are. If it
    cannot be read at all, the daemon is looked for at the default paths.
    """
    file = (_default_file() if named is None else named).absolute()
    mistake = None
    try:
        text = read_text(configuration_file(named), is_relied_on=False)
    except ConfigurationError as error:
        mistake, table = error, {}
    else:
        try:
            table = document_of(str(file), text).data.get("daemon", {})
        except ConfigurationError as error:
            mistake, table = error, _lines_of_daemon(text)
    files = _daemon_files(file, table if isinstance(table, dict) else {})
    if mistake is not None and holder(files.pid_file) is None:
        raise mistake
    return files


def _lines_of_daemon(text: str) -> dict[str, Any]:
    """Return the keys of [daemon] whose lines are TOML by themselves."""
    table: dict[str, Any] = {}
    header = ""
    for line in text.splitlines():
        if line.lstrip().startswith("["):
            header = line.partition("#")[0].strip()
        elif header == "[daemon]":
            with contextlib.suppress(tomli.TOMLDecodeError):
                table |= tomli.loads(line)
    return table


def _daemon_files(file: Path, table: dict[str, Any]) -> DaemonFiles:
    """Return the files that a [daemon] table names, or their defaults."""
    daemon = Daemon()
    for key in ("pid-file", "control-socket", "drain-timeout"):
        if key in table:
            with contextlib.suppress(ValidationError):
                valid = Daemon.model_validate({key: table[key]}, context={"directory": file.parent})
                field = key.replace("-", "_")
                daemon = daemon.model_copy(update={field: getattr(valid, field)})
    return DaemonFiles(
        configuration=file,
        pid_file=daemon.pid_file or _default_pid_file(file),
        control_socket=daemon.control_socket or _default_control_socket(file),
        drain_timeout=daemon.drain_timeout,
    )


def services_in(named: Path | None) -> set[str]:
    """Return the names of the services in the configuration, as far as it can be read."""
    try:
        return set(load(configuration_file(named)).partial.services)
    except ConfigurationError:
        return set()


def no_such_service(name: str, services: Iterable[str]) -> UsageError:
    """Return the error for a service name that is not among `services`."""
    hint = did_you_mean(name, list(services))
    return UsageError(f"there is no service {shown(name)}{hint}")


def with_runtime_files(configuration: Configuration) -> Configuration:
    """Fill in the default paths of pid file, control socket and ban file."""
    settings = configuration.partial
    file, daemon = settings.file, settings.daemon
    daemon = daemon.model_copy(
        update={
            "pid_file": daemon.pid_file or _default_pid_file(file),
            "control_socket": daemon.control_socket or _default_control_socket(file),
            "ban_file": daemon.ban_file or state_directory() / f"{file.stem}.bans",
        }
    )
    return replace(configuration, partial=settings.model_copy(update={"daemon": daemon}))


def _default_pid_file(file: Path) -> Path:
    return runtime_directory() / f"{file.stem}.pid"


def _default_control_socket(file: Path) -> Path:
    return runtime_directory() / f"{file.stem}.sock"


def runtime_directory() -> Path:
    """Return the directory that systemd made, else /run/superd for root, else the user's own."""
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
    """Return the directory that systemd made, else /var/lib/superd for root, else the user's."""
    if made := _made_by_systemd("STATE_DIRECTORY"):
        return made
    home = None if os.geteuid() == 0 else _home("XDG_STATE_HOME", "~/.local/state")
    return SYSTEM_STATE if home is None else Path(home, "superd")


def _made_by_systemd(variable: str) -> Path | None:
    """Return the first directory that a unit names (RuntimeDirectory=, StateDirectory=)."""
    first = os.environ.get(variable, "").partition(":")[0]
    return Path(first) if first.startswith("/") else None


def _home(variable: str, default: str) -> Path | None:
    """Return a directory of the user's; None where the user has no home, as in a container."""
    with contextlib.suppress(RuntimeError):
        return Path(os.environ.get(variable) or Path(default).expanduser())
    return None
