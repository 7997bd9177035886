"""The table of all commands: name, arguments, and the function that runs each.

Runs in the command line. Names each function by its module and imports it only to run it, so that
every command starts fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from superd.observe.records import LEVELS
from superd.process.forking import signals_blocked


@dataclass(frozen=True)
class Argument:
    """The arguments of one `add_argument` call of argparse."""

    names: tuple[str, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Command:
    """One command. Its function takes the parsed arguments by name, and those in `constants`."""

    name: str
    function: str  # "module:function" below superd
    help: str
    arguments: tuple[Argument, ...] = ()
    exclusive: tuple[Argument, ...] = ()  # of which the operator may give one
    constants: Mapping[str, object] = field(default_factory=dict)

    def run(self, arguments: Mapping[str, object]) -> int:
        """Import the function, run it and return the exit code."""
        name, _, function = self.function.partition(":")
        with signals_blocked():
            module = import_module(f"superd.{name}")
        return int(getattr(module, function)(**arguments))


def _argument(*names: str, **settings: Any) -> Argument:
    return Argument(names, settings)


def _flag(*names: str, **settings: Any) -> Argument:
    return Argument(names, {"action": "store_true", **settings})


def _form(name: str, text: str) -> Argument:
    settings = {"action": "store_const", "const": name, "default": "text", "help": text}
    return Argument((f"--{name}",), {"dest": "form", **settings})


FILE = _argument(
    "-c", "--config", dest="file", type=Path, metavar="FILE", help="configuration file"
)
SERVICE = _argument("service", metavar="SERVICE")
JSON = _flag("--json", dest="as_json", help="print JSON")
TIMEOUT = _argument("--timeout", metavar="TIME", help="default: 2s")
TARGET = _argument(
    "address",
    metavar="ADDRESS",
    help="such as tcp://HOST:PORT, HOST:PORT, udp://HOST:PORT, unix:///PATH or unix://@NAME",
)

DAEMON = (
    Command(
        "run",
        "cli.serve:run",
        "serve in the foreground; print `ready` once superd serves",
        (
            FILE,
            _argument(
                "--ready-fd",
                type=int,
                metavar="N",
                help="also write a newline to this descriptor, as s6 expects",
            ),
        ),
    ),
    Command(
        "start",
        "cli.serve:start",
        "serve as a daemon; return once superd serves, or print why it cannot",
        (FILE,),
    ),
    Command(
        "stop",
        "cli.control:stop",
        "stop the daemon: let connections finish, return once it has ended",
        (FILE,),
    ),
    Command(
        "reload",
        "cli.control:reload",
        "reload the configuration; change nothing and exit 78 if it has a mistake",
        (FILE,),
    ),
    Command(
        "upgrade",
        "cli.control:upgrade",
        "replace the running superd by the installed one; connections continue",
        (FILE,),
    ),
    Command("reopen", "cli.control:reopen", "reopen log files, also those of plugins", (FILE,)),
)

OPERATION = (
    Command(
        "status",
        "cli.status:status",
        "show workers, services and counters; exit 3 if superd is not running",
        (FILE,),
        exclusive=(_form("json", "print JSON"), _form("prometheus", "print Prometheus metrics")),
    ),
    Command(
        "top",
        "cli.top:top",
        "show services and workers live, with rates; q quits",
        (FILE, _flag("--once", help="print one snapshot as plain text")),
    ),
    Command(
        "connections",
        "cli.connections:connections",
        "list open connections; exit 1 if the list is incomplete",
        (
            FILE,
            _argument("service", nargs="?", metavar="SERVICE", help="list those of this service"),
            JSON,
        ),
    ),
    Command(
        "kill",
        "cli.connections:kill",
        "close a connection; exit 1 if there is none with this ID",
        (
            FILE,
            _argument("connection", metavar="ID", help="as in `superd connections` and in the log"),
        ),
    ),
    Command(
        "disable",
        "cli.control:enable",
        "stop listening for a service, until it is enabled or superd stops",
        (FILE, SERVICE),
        constants={"enabled": False},
    ),
    Command(
        "enable",
        "cli.control:enable",
        "serve a service even if its entry disables it",
        (FILE, SERVICE),
        constants={"enabled": True},
    ),
    Command(
        "log-level",
        "cli.control:log_level",
        "show or change which log lines are written",
        (FILE, _argument("level", nargs="?", choices=LEVELS, help="the least severe level")),
    ),
    Command(
        "ban",
        "cli.bans:ban",
        "ban an address from all services for a time",
        (
            FILE,
            _argument("address", metavar="ADDRESS", help="an address or a network"),
            _argument("--for", dest="duration", default="1h", metavar="TIME", help="default: 1h"),
            _argument("--reason", default="", metavar="TEXT", help="saved with the ban"),
            _flag("--yes", dest="sure", help="also ban this machine, or a large part of all"),
        ),
    ),
    Command(
        "unban",
        "cli.bans:unban",
        "lift a ban; exit 1 if there is none",
        (FILE, _argument("address", metavar="ADDRESS")),
    ),
    Command("bans", "cli.bans:bans", "list all bans", (FILE, JSON)),
    Command(
        "explain",
        "cli.explain:explain",
        "show whether a client would be admitted, and by which rule",
        (
            FILE,
            SERVICE,
            _argument(
                "address", metavar="ADDRESS", help="of the client; user:NAME for a unix socket"
            ),
            _argument("--at", metavar="TIME", help='such as "2026-11-25 18:30"; default: now'),
        ),
    ),
)

CONFIGURATION = (
    Command(
        "check",
        "cli.check:check",
        "check configuration files; exit 78 if there is a mistake",
        (_argument("files", nargs="*", type=Path, metavar="FILE"), FILE),
    ),
    Command("schema", "cli.schema:schema", "print the JSON Schema of a configuration"),
    Command(
        "plugins",
        "cli.plugins:plugins",
        "list the installed plugins, or show one",
        (FILE, _argument("name", nargs="?", metavar="NAME"), JSON),
    ),
    Command(
        "migrate",
        "cli.migrate:migrate",
        "convert inetd.conf or xinetd.conf to TOML",
        (
            _argument("dialect", choices=["inetd", "xinetd"]),
            _argument("path", type=Path, metavar="FILE", help="for xinetd also a directory"),
        ),
    ),
    Command(
        "try",
        "cli.attempt:attempt",
        "serve one plugin on 127.0.0.1, without a configuration file and without root",
        (
            _argument("plugin", metavar="PLUGIN"),
            _argument(
                "settings",
                nargs="*",
                metavar="KEY=VALUE",
                help="options of the plugin, or keys of a service entry",
            ),
        ),
    ),
)

CLIENTS = (
    Command(
        "connect",
        "client.connect:run",
        "connect standard input and output to an address; exit 0 once both sides have ended",
        (
            TARGET,
            _flag(
                "--line",
                dest="by_lines",
                help="at a terminal: edit a line, then send it; udp: one datagram per line",
            ),
            _argument(
                "--no-half-close",
                dest="half_close",
                action="store_false",
                help="do not end the sending side at the end of the input",
            ),
            _argument(
                "--timeout",
                metavar="TIME",
                help="to connect, and between bytes; udp: after the last answer (default: 1s)",
            ),
            _argument("--source", default="", metavar="HOST", help="own address to connect from"),
            _flag("--tls", help="encrypt, and verify the server's certificate"),
            _argument(
                "--ca",
                dest="authorities",
                metavar="FILE",
                help="trust these certificates instead of the system's",
            ),
            _argument(
                "--server-name", metavar="NAME", help="name that the certificate has to have"
            ),
            _flag("--insecure", help="do not verify the certificate"),
        ),
    ),
    Command(
        "clock",
        "client.clock:clock",
        "show how far another host's clock is from this one (RFC 868, udp)",
        (
            _argument("host", metavar="HOST[:PORT]", help="default port: 37"),
            _flag("--tcp", dest="by_tcp", help="use tcp"),
            TIMEOUT,
        ),
    ),
    Command(
        "message",
        "client.message:message",
        "send a text and print the answer; udp://HOST:PORT sends a datagram",
        (
            TARGET,
            _argument("text", metavar="TEXT", help="- reads it from standard input"),
            TIMEOUT,
        ),
    ),
    Command(
        "whoami",
        "client.whoami:whoami",
        "show this machine's names and addresses",
        (
            _argument(
                "address",
                nargs="?",
                metavar="ADDRESS",
                help="also show from which address a peer there would see this machine;"
                " only tcp:// connects",
            ),
            JSON,
            TIMEOUT,
        ),
    ),
)

COMMANDS = (*DAEMON, *OPERATION, *CONFIGURATION, *CLIENTS)
