"""`superd run` and `superd start`: serve, and report to the operator who started superd.

Runs in the command line, and becomes the master.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import NoReturn

from superd import __version__
from superd.cli.files import configuration_file, with_runtime_files
from superd.config.loading import load
from superd.config.model import Daemon
from superd.errors import ExitCode, SuperdError, UsageError, reason
from superd.listen.inherited import Inheritance, take_inherited
from superd.listen.listener import Listener
from superd.master.plan.plan import Plan, plan
from superd.master.signals import end_on_term
from superd.master.start import make_runtime_directory, serve
from superd.net.addresses import ANY_IPV4, ANY_IPV6, Address, Transport
from superd.process.daemonize import Launch, Verdict, detach
from superd.process.forking import signals_blocked

MAX_SHOWN_ADDRESSES = 12  # of one service: a range may have thousands


def run(file: Path | None, ready_fd: int | None = None) -> int:
    """Serve in the foreground."""
    end_on_term()
    with signals_blocked():
        inheritance = take_inherited()
        ready = announce if ready_fd is None else _announcing_on(ready_fd)
        planned = planned_from(file)
    print_lines(f"superd {__version__}: {planned.settings.file}")
    return serve(planned, inheritance, in_background=False, ready=ready)


def start(file: Path | None) -> int:
    """Serve in the background; return once superd serves, or has failed to."""
    if os.getpid() == 1:
        raise UsageError("process 1 must not go into the background; use `superd run`")
    end_on_term()
    with signals_blocked():
        inheritance = take_inherited()
        planned = planned_from(file)
    launch = detach()
    if isinstance(launch, Launch):
        _become_daemon(planned, inheritance, launch)
    if launch.text:
        print(launch.text, file=sys.stderr)
    return launch.code


def _become_daemon(planned: Plan, inheritance: Inheritance, launch: Launch) -> NoReturn:
    code = int(ExitCode.FAILED)

    def ready(listeners: list[Listener]) -> None:
        launch.report(_verdict(planned, listeners))

    try:
        code = serve(planned, inheritance, in_background=True, ready=ready)
    except SuperdError as error:
        code = int(error.exit_code)
        launch.report(Verdict(code, f"superd: {error}"))
    except BaseException as error:  # noqa: BLE001  the operator gets any failure
        launch.report(Verdict(code, f"superd failed: {reason(error)}"))
    finally:
        os._exit(code)  # without the exit handlers, which are the command's


def _verdict(planned: Plan, listeners: list[Listener]) -> Verdict:
    lines = [f"superd: {notice}" for notice in planned.notices]
    lines += [
        f"superd: service.{name} is not served: {why}" for name, why in planned.broken.items()
    ]
    lines += [f"superd: {line}; it is tried again" for line in planned.pending]
    if not (planned.broken or planned.pending):
        return Verdict(int(ExitCode.OK), "\n".join(lines))
    served, all_ = len({one.service for one in listeners}), len(planned.settings.enabled)
    lines.append(f"superd: {served} of {all_} services are served, by process {os.getpid()}")
    return Verdict(int(ExitCode.FAILED), "\n".join(lines))


def planned_from(file: Path | None) -> Plan:
    """Read the configuration, run the preflight, and create the runtime directories."""
    configuration = load(configuration_file(file))
    planned = plan(with_runtime_files(configuration))
    _make_directories(planned, named=configuration.settings.daemon)
    return planned


def _make_directories(planned: Plan, named: Daemon) -> None:
    """Create the directories of the pid file, the control socket and the ban file.

    Where that fails, as in a container with a read-only file system, superd runs without those
    files that the configuration does not name.
    """
    daemon = planned.settings.daemon
    for key in ("pid_file", "control_socket", "ban_file"):
        path: Path = getattr(daemon, key)
        try:
            make_runtime_directory(path.parent)
        except SuperdError as error:
            if getattr(named, key) is not None:
                raise
            daemon = daemon.model_copy(update={key: None})
            word = key.replace("_", "-")
            planned.notices.append(f"no {word}: {error}; [daemon] {word} may name another path")
    planned.settings = planned.settings.model_copy(update={"daemon": daemon})


def print_lines(*lines: str) -> None:
    """Print lines; if the reader has closed the output, superd continues without."""
    try:
        print(*lines, sep="\n", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that exit does not write the rest


def announce(listeners: list[Listener]) -> None:
    """Print each bound address with a line to try, then `ready`."""
    lines = []
    width = max(len(listener.service) for listener in listeners)
    for service, group in groupby(listeners, key=lambda listener: listener.service):
        addresses = [listener.address for listener in group]
        lines += [
            f"{service:<{width}}  {address!s:<32}  try: {line_to_try(address)}"
            for address in addresses[:MAX_SHOWN_ADDRESSES]
        ]
        if len(addresses) > MAX_SHOWN_ADDRESSES:
            lines.append(f"{service:<{width}}  ... and {len(addresses) - MAX_SHOWN_ADDRESSES} more")
    print_lines(*lines, "ready")


def _announcing_on(descriptor: int) -> Callable[[list[Listener]], None]:
    """Return a callback that also writes a newline to a descriptor, as s6 expects it."""
    try:
        os.set_inheritable(descriptor, False)
    except (OSError, OverflowError):
        raise UsageError(f"--ready-fd: descriptor {descriptor} is not open") from None

    def ready(listeners: list[Listener]) -> None:
        announce(listeners)
        with contextlib.suppress(OSError):
            os.write(descriptor, b"\n")
        if descriptor > 2:
            os.close(descriptor)

    return ready


def line_to_try(address: Address) -> str:
    """Return a shell command that connects to the address. It takes superd only, and no nc."""
    if address.transport is Transport.TCPMUX:
        return f'connect to the service with plugin = "tcpmux" and send {address.path}'
    host = {ANY_IPV4: "127.0.0.1", ANY_IPV6: "::1"}.get(address.host, address.host)
    return shlex.join([*_this_program(), "connect", str(replace(address, host=host))])


def _this_program() -> list[str]:
    """Return how this superd is run: by its name if PATH finds it, else by its path."""
    invoked = sys.argv[0]
    if os.path.basename(invoked) == "__main__.py":
        return [sys.executable, "-m", "superd"]
    found = shutil.which("superd")
    is_found = found is not None and os.path.realpath(found) == os.path.realpath(invoked)
    return ["superd"] if is_found else [os.path.abspath(invoked)]
