"""The client's end of the control socket: finds the daemon of a configuration and asks it.

Runs in the command line. Finds the daemon by its control socket, by the lock on its pid file or by
its process title, never by a process number alone. Sends no request to a daemon that serves another
configuration, even if both have the same name and therefore the same default paths. Raises
NotRunning, ServesAnotherFile, NotPermitted where the daemon belongs to another user, and
SuperdError where it does not answer or refuses the request.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from superd.cli.files import SYSTEM_DIRECTORY, DaemonFiles
from superd.errors import ExitCode, NotPermitted, SuperdError, reason
from superd.master.pidfile import MASTER_TITLE, holder, master_of
from superd.net.credentials import peer_pid

ANSWER_TIMEOUT = 5.0  # seconds to connect, and to wait for an answer


class NotRunning(SuperdError):
    """No daemon runs with this configuration."""


class NotListening(SuperdError):
    """No process listens on the control socket."""


class ServesAnotherFile(SuperdError):
    """The daemon at this control socket serves another configuration file."""


class ControlConnection:
    """A connection to a control socket. Requests and answers are lines of JSON, in order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_TIMEOUT)
        try:
            self._socket.connect(str(path))
        except PermissionError:
            self._socket.close()
            raise NotPermitted(f"control socket {path}: it belongs to another user") from None
        except (FileNotFoundError, ConnectionRefusedError):
            self._socket.close()
            raise NotListening(f"control socket {path}: no process listens there") from None
        except OSError as error:
            self._socket.close()
            raise self._failure(error) from None
        self._answers = self._socket.makefile("rb")

    @property
    def pid(self) -> int:
        """The process that listens on the socket; 0 if it is in another container."""
        return peer_pid(self._socket)

    def ask(self, request: str, **arguments: object) -> Any:
        """Return the answer to a request, which may be an error; SuperdError if there is none."""
        line = json.dumps({"request": request, **arguments}).encode("ascii") + b"\n"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the answer says why
            self._socket.sendall(line)
        try:
            return json.loads(self._answers.readline())
        except (OSError, ValueError) as error:
            raise self._failure(error) from None

    def request(self, request: str, **arguments: object) -> Any:
        """Return the answer to a request; SuperdError if the daemon refuses it."""
        return _without_error(self.ask(request, **arguments))

    def outline(self) -> Any:
        """Return the short form of the daemon's status, by which a command recognises it."""
        outline = self.ask("outline")
        if outline.get("error", "").startswith("there is no request"):  # an older daemon
            return self.request("status")
        return _without_error(outline)

    def _failure(self, error: OSError | ValueError) -> SuperdError:
        if isinstance(error, TimeoutError):
            why = (
                f"no answer within {ANSWER_TIMEOUT:.0f} s;"
                " superd is very busy, or stopped by SIGSTOP"
            )
        else:
            why = reason(error) if isinstance(error, OSError) else "there is no answer"
        return SuperdError(f"control socket {self._path}: {why}")

    def close(self) -> None:
        self._answers.close()
        self._socket.close()

    def __enter__(self) -> ControlConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _without_error(answer: Any) -> Any:
    if "error" not in answer:
        return answer
    error = SuperdError(answer["error"])
    error.exit_code = ExitCode(answer.get("code", ExitCode.FAILED))
    raise error


@contextlib.contextmanager
def connected(files: DaemonFiles) -> Iterator[ControlConnection]:
    """Provide a connection to the daemon that serves a configuration."""
    try:
        connection = ControlConnection(files.control_socket)
    except NotListening as error:
        pid = holder_of(files)
        if pid is None:
            pid = master_of(files.configuration)
        if pid is None:
            raise NotRunning("it is not running") from None
        raise SuperdError(
            f"{error}; process {pid} serves {files.configuration} on another one. A change of"
            f" control-socket takes a restart; kill -HUP {pid} reloads, kill -TERM {pid} stops"
        ) from None
    with connection:
        outline = connection.outline()
        served = outline["configuration"]
        if not _is_same_file(served, files.configuration):
            pid = outline["pid"]
            raise ServesAnotherFile(f"process {pid} serves {served}, not {files.configuration}")
        yield connection


def ask_daemon(files: DaemonFiles, request: str, **arguments: object) -> Any:
    """Send one request to the daemon and return its answer."""
    with connected(files) as connection:
        return connection.request(request, **arguments)


def process_of(files: DaemonFiles) -> int | None:
    """Return the process of the daemon, None where none runs, 0 where it is in another container.

    Found by the control socket where the pid file was removed or renamed.
    """
    pid = holder_of(files)
    if pid is None:
        with contextlib.suppress(NotRunning), connected(files) as connection:
            pid = connection.pid
    return pid


def holder_of(files: DaemonFiles) -> int | None:
    """Return the process that holds the lock on the pid file; 0 where it is in another container.

    NotPermitted where a daemon of the system serves the file.
    """
    pid = holder(files.pid_file)
    if pid is None and (other := _system_daemon_of(files)):
        raise NotPermitted(f"superd runs as process {other} and belongs to another user")
    return pid


def _system_daemon_of(files: DaemonFiles) -> int | None:
    """Return the process of another user's daemon that serves the file from root's directory.

    Recognised by its process title: its control socket admits only root and its own user.
    """
    with contextlib.suppress(SuperdError, OSError):
        pid = holder(SYSTEM_DIRECTORY / f"{files.configuration.stem}.pid")
        if pid and Path(f"/proc/{pid}").stat().st_uid != os.geteuid():
            title = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0"))
            if _is_same_file(title.removeprefix(MASTER_TITLE), files.configuration):
                return pid
    return None


def _is_same_file(one: str, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
