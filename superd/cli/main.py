"""The `superd` command: parses the command line and runs one command.

Runs in the command line. Prints errors meant for the operator without a traceback, and exits with
their exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import sys
from collections.abc import Sequence

from superd import __version__
from superd.cli.commands import COMMANDS, Command
from superd.errors import ExitCode, SuperdError, reason

DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        try:
            return _run_command(arguments)
        finally:
            sys.stdout.flush()  # at exit an error could not be reported any more
    except SuperdError as error:
        is_complete = error.exit_code == ExitCode.CONFIGURATION  # each line starts with its file
        print(f"{error}" if is_complete else f"superd: {error}", file=sys.stderr)
        return int(error.exit_code)
    except BrokenPipeError:
        _discard_standard_output()
        return int(ExitCode.FAILED)
    except OSError as error:
        if error.errno not in DISK_ERRNOS:
            raise
        print(f"superd: cannot write: {reason(error)}", file=sys.stderr)
        _discard_standard_output()
        return int(ExitCode.FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED


def _discard_standard_output() -> None:
    """Send what is still buffered to /dev/null, as the interpreter would write it at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run_command(arguments: Sequence[str] | None) -> int:
    from superd.master.signals import reset_inherited
    from superd.process.daemonize import open_standard_descriptors

    # Pydantic would import plugins of its own from any distribution, and as root. A value that is
    # set already is left in place: setproctitle overwrites the environment up to the first
    # variable that was moved.
    if os.environ.get("PYDANTIC_DISABLE_PLUGINS") != "__all__":
        os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    open_standard_descriptors()
    reset_inherited()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the locale may lack characters
    parsed = vars(parser().parse_args(arguments))
    command: Command = parsed.pop("command")
    return command.run(parsed)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="superd",
        description="A superserver whose services are plugins.",
        epilog="Without -c: $SUPERD_CONFIG, else /etc/superd.toml as root and"
        " ~/.config/superd/superd.toml as another user.",
    )
    top.add_argument("--version", action="version", version=f"superd {__version__}")
    subparsers = top.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        added = subparsers.add_parser(command.name, help=command.help, description=command.help)
        added.set_defaults(command=command, **command.constants)
        for argument in command.arguments:
            added.add_argument(*argument.names, **argument.settings)
        if command.exclusive:
            group = added.add_mutually_exclusive_group()
            for argument in command.exclusive:
                group.add_argument(*argument.names, **argument.settings)
    return top
