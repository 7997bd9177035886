"""The `superd` command: its arguments, and which function runs them.

Runs in the command line. Errors meant for the operator are printed without a traceback, and their
exit code is superd's.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from superd import __version__
from superd.cli.clients import add_clients
from superd.errors import ExitCode, SuperdError, reason
from superd.observe.records import LEVELS

Command = Callable[[argparse.Namespace], int]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # of a disk, whatever is written there


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        try:
            return _run_command(arguments)
        finally:
            sys.stdout.flush()  # here and not at exit, where nobody could tell what is wrong
    except SuperdError as error:
        print(f"{error}" if error.exit_code == 78 else f"superd: {error}", file=sys.stderr)
        return int(error.exit_code)
    except BrokenPipeError:
        _write_no_more()
        return int(ExitCode.FAILED)
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"superd: cannot write: {reason(error)}", file=sys.stderr)
        _write_no_more()
        return int(ExitCode.FAILED)
    except KeyboardInterrupt:
        return 130


def _write_no_more() -> None:
    """Have what is left for standard output go nowhere, as it would be written at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run_command(arguments: Sequence[str] | None) -> int:
    from superd.master.signals import reset_inherited
    from superd.process.daemonize import open_standard_descriptors

    # Pydantic would import what any distribution offers it, and as root. A value that is there
    # already stays where it is: setproctitle wipes the environment up to the first that moved.
    if os.environ.get("PYDANTIC_DISABLE_PLUGINS") != "__all__":
        os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    open_standard_descriptors()
    reset_inherited()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the locale may lack characters
    options = parser().parse_args(arguments)
    command: Command = options.command
    return int(command(options))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="superd",
        description="A superserver whose services are plugins.",
        epilog="Without -c: $SUPERD_CONFIG, else /etc/superd.toml as root and"
        " ~/.config/superd/superd.toml as another user.",
    )
    top.add_argument("--version", action="version", version=f"superd {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=command)
        return added

    def with_file(added: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added.add_argument("-c", "--config", type=Path, metavar="FILE", help="configuration file")
        return added

    run = with_file(add("run", _run, "serve in the foreground; prints `ready` once it does"))
    run.add_argument(
        "--ready-fd", type=int, metavar="N", help="write a newline there, too, as s6 expects it"
    )
    with_file(add("start", _start, "serve as a daemon; returns once it does, or why it does not"))
    stop = with_file(
        add("stop", _stop, "stop the daemon, connections may finish; returns when it is gone")
    )
    reload = with_file(
        add("reload", _reload, "read the configuration anew; exit 78 if it has a mistake")
    )
    for waiting in (stop, reload):
        waiting.add_argument("--wait", action="store_true", help="as it does anyway")
    with_file(
        add("upgrade", _upgrade, "go over to the program that is installed now; connections go on")
    )
    with_file(add("reopen", _reopen, "open log files anew, after they were renamed"))
    status = with_file(
        add("status", _status, "show workers, services and counts; exit 3 if stopped")
    )
    forms = status.add_mutually_exclusive_group()
    for form, text in (("json", "as JSON"), ("prometheus", "as metrics for Prometheus")):
        forms.add_argument(
            f"--{form}", dest="form", action="store_const", const=form, default="text", help=text
        )
    top_ = with_file(add("top", _top, "show services and workers live, with rates; q ends it"))
    top_.add_argument("--once", action="store_true", help="one look, in plain text")
    connections = with_file(
        add("connections", _connections, "list who is connected; exit 1 if some cannot be told")
    )
    connections.add_argument("service", nargs="?", metavar="SERVICE", help="only of this one")
    connections.add_argument("--json", action="store_true", help="as JSON")
    kill = with_file(add("kill", _kill, "end a connection; exit 1 if there is none"))
    kill.add_argument("id", metavar="ID", help="as `superd connections` and the log have it")
    disable = with_file(
        add("disable", _disable, "listen no more for a service, until superd is stopped")
    )
    disable.add_argument("service", metavar="SERVICE")
    enable = with_file(add("enable", _enable, "serve a service, whatever its entry says"))
    enable.add_argument("service", metavar="SERVICE")
    level = with_file(add("log-level", _log_level, "show or change which records are logged"))
    level.add_argument("level", nargs="?", choices=LEVELS, help="the least severe that is")
    ban = with_file(add("ban", _ban, "keep an address out of all services for a time"))
    ban.add_argument("address", metavar="ADDRESS", help="an address or a network")
    ban.add_argument("--for", dest="duration", default="1h", metavar="TIME", help="default: 1h")
    ban.add_argument("--reason", default="", metavar="TEXT", help="to be remembered with it")
    unban = with_file(add("unban", _unban, "lift a ban; exit 1 if there is none"))
    unban.add_argument("address", metavar="ADDRESS")
    bans = with_file(add("bans", _bans, "list all bans"))
    bans.add_argument("--json", action="store_true", help="as JSON")
    explain = with_file(
        add("explain", _explain, "tell whether a client would be let in, and by which rule")
    )
    explain.add_argument("service", metavar="SERVICE")
    explain.add_argument("address", metavar="ADDRESS", help="or user:NAME, for a unix socket")
    explain.add_argument("--at", metavar="TIME", help='such as "2026-11-25 18:30"; default: now')
    check = add("check", _check, "check configuration files; exit 78 if there is a mistake")
    check.add_argument("files", nargs="*", type=Path, metavar="FILE")
    with_file(check)
    with_file(add("schema", _schema, "print the JSON Schema of a configuration"))
    plugins = with_file(add("plugins", _plugins, "list installed plugins, or show one"))
    plugins.add_argument("name", nargs="?", metavar="NAME")
    plugins.add_argument("--json", action="store_true", help="as JSON")
    migrate = add("migrate", _migrate, "turn inetd.conf or xinetd.conf into TOML")
    migrate.add_argument("dialect", choices=["inetd", "xinetd"])
    migrate.add_argument("path", type=Path, metavar="FILE", help="for xinetd also a directory")
    attempt = add("try", _try, "serve one plugin on 127.0.0.1, without a file and without root")
    attempt.add_argument("plugin", metavar="PLUGIN")
    attempt.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="the plugin's options, or keys of an entry"
    )
    add_clients(add)
    return top


def _run(options: argparse.Namespace) -> int:
    from superd.cli.serve import run

    return run(options.config, options.ready_fd)


def _start(options: argparse.Namespace) -> int:
    from superd.cli.serve import start

    return start(options.config)


def _stop(options: argparse.Namespace) -> int:
    from superd.cli.control import stop

    return stop(options.config)


def _reload(options: argparse.Namespace) -> int:
    from superd.cli.control import reload

    return reload(options.config)


def _upgrade(options: argparse.Namespace) -> int:
    from superd.cli.control import upgrade

    return upgrade(options.config)


def _reopen(options: argparse.Namespace) -> int:
    from superd.cli.control import reopen

    return reopen(options.config)


def _enable(options: argparse.Namespace) -> int:
    from superd.cli.control import enable

    return enable(options.config, options.service, enabled=True)


def _disable(options: argparse.Namespace) -> int:
    from superd.cli.control import enable

    return enable(options.config, options.service, enabled=False)


def _log_level(options: argparse.Namespace) -> int:
    from superd.cli.control import log_level

    return log_level(options.config, options.level)


def _top(options: argparse.Namespace) -> int:
    from superd.cli.top import top

    return top(options.config, once=options.once)


def _status(options: argparse.Namespace) -> int:
    from superd.cli.status import status

    return status(options.config, options.form)


def _connections(options: argparse.Namespace) -> int:
    from superd.cli.connections import connections

    return connections(options.config, options.service, as_json=options.json)


def _kill(options: argparse.Namespace) -> int:
    from superd.cli.connections import kill

    return kill(options.config, options.id)


def _ban(options: argparse.Namespace) -> int:
    from superd.cli.bans import ban

    return ban(options.config, options.address, options.duration, options.reason)


def _unban(options: argparse.Namespace) -> int:
    from superd.cli.bans import unban

    return unban(options.config, options.address)


def _bans(options: argparse.Namespace) -> int:
    from superd.cli.bans import bans

    return bans(options.config, as_json=options.json)


def _explain(options: argparse.Namespace) -> int:
    from superd.cli.explain import explain

    return explain(options.config, options.service, options.address, options.at)


def _check(options: argparse.Namespace) -> int:
    from superd.cli.check import check

    return check([*options.files, *([options.config] if options.config else [])])


def _schema(options: argparse.Namespace) -> int:
    from superd.cli.schema import schema

    return schema()


def _plugins(options: argparse.Namespace) -> int:
    from superd.cli.plugins import list_plugins, show_plugin

    if options.name:
        return show_plugin(options.name, as_json=options.json)
    return list_plugins(options.config, as_json=options.json)


def _migrate(options: argparse.Namespace) -> int:
    from superd.cli.migrate import migrate

    return migrate(options.dialect, options.path)


def _try(options: argparse.Namespace) -> int:
    from superd.cli.attempt import attempt

    return attempt(options.plugin, options.settings)
