"""Every key of a configuration, with its type, default and description.

Runs wherever a configuration is read. The models are frozen: a reload makes new objects. Looks up
users and groups, and nothing else of the system. Raises pydantic's ValidationError.
"""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from superd.config.lists import Events, ListFiles, Networks, Patterns, TimeZone, Windows
from superd.config.section import Section
from superd.config.values import (
    Addresses,
    Duration,
    FilePath,
    Group,
    Groups,
    LogSinks,
    Rate,
    Size,
    SocketPath,
    Strings,
    Umask,
    User,
)

LARGEST_LIMIT = 1 << 30  # more than any machine has, and less than setrlimit(2) accepts

EXEC = "exec"  # the plugin that runs programs
METRICS = "metrics"  # the plugin that exports superd's own metrics
TCPMUX = "tcpmux"  # the plugin that passes connections to services on tcpmux://NAME

BLOCKING_MODELS = ("thread", "fork", "prefork")
FORKING_MODELS = ("fork", "prefork")


def _chroot(path: str) -> str:
    if path and not path.startswith("/"):
        raise ValueError('expected the absolute path of a directory, or "" for none')
    return path.rstrip("/") or path


class Rlimits(Section):
    """Resource limits of a worker, soft and hard (setrlimit(2))."""

    nofile: Annotated[
        Annotated[int, Field(ge=16, le=LARGEST_LIMIT)] | None, Field(description="open files")
    ] = None
    nproc: Annotated[
        Annotated[int, Field(ge=0, le=LARGEST_LIMIT)] | None,
        Field(description="processes of the user"),
    ] = None
    core: Annotated[Size, Field(description="size of a core dump")] = 0
    memory: Annotated[Size | None, Field(description="address space")] = None
    file_size: Annotated[Size | None, Field(description="largest file that can be written")] = None
    cpu: Annotated[Duration | None, Field(description="processor time")] = None


class Confinement(Section):
    """The privileges that a worker drops. Services with equal values share a pool."""

    user: Annotated[
        User | None,
        Field(description="user of the workers; default: nobody, if superd starts as root"),
    ] = None
    group: Annotated[
        Group | None, Field(description="group; default: the user's primary group")
    ] = None
    groups: Annotated[Groups, Field(description="supplementary groups")] = ()
    chroot: Annotated[
        str,
        AfterValidator(_chroot),
        Field(description='root directory of the workers; "" for none'),
    ] = ""
    umask: Annotated[Umask, Field(description="file mode creation mask")] = 0o077
    nice: Annotated[int, Field(ge=-20, le=19, description="scheduling priority")] = 0
    rlimits: Annotated[Rlimits, Field(description="resource limits")] = Rlimits()
    no_new_privs: Annotated[
        bool,
        Field(
            description="programs cannot gain privileges (prctl(2)); false lets those that are"
            " set-user-ID, or have file capabilities, have them in full"
        ),
    ] = True
    pool: Annotated[
        str, Field(description="services of another pool never share a process with these")
    ] = ""


class SourceNetblock(Section):
    """The prefix lengths that count as one source: a client often owns a whole network."""

    ipv4: Annotated[int, Field(ge=0, le=32, description="bits of an IPv4 address")] = 32
    ipv6: Annotated[int, Field(ge=0, le=128, description="bits of an IPv6 address")] = 64


ConnectionLimit = Annotated[int, Field(ge=0, le=LARGEST_LIMIT)]


class Limits(Section):
    """Limits of connections and their rate; 0 means no limit."""

    max_connections: Annotated[ConnectionLimit, Field(description="connections at a time")] = 0
    rate: Annotated[Rate, Field(description="new connections or datagrams per time")] = 0.0
    burst: Annotated[
        ConnectionLimit,
        Field(description="how many at once; default: as many as the rate allows per second"),
    ] = 0
    max_per_source: Annotated[
        ConnectionLimit, Field(description="connections of one source at a time")
    ] = 0
    rate_per_source: Annotated[Rate, Field(description="like rate, for each source")] = 0.0
    burst_per_source: Annotated[
        ConnectionLimit, Field(description="like burst, for each source")
    ] = 0
    source_netblock: Annotated[
        SourceNetblock, Field(description="how many bits of an address identify a source")
    ] = SourceNetblock()
    max_load: Annotated[
        float,
        Field(
            ge=0,
            le=1e6,
            description="load average of the last minute above which clients are refused",
        ),
    ] = 0.0


class Access(Section):
    """Which clients are admitted, and when."""

    allow: Annotated[
        Patterns | None,
        Field(
            description='clients to admit; default: all that are not denied; "*" is every client'
        ),
    ] = None
    deny: Annotated[
        Patterns, Field(description="clients to refuse; the more specific rule decides")
    ] = ()
    allow_file: Annotated[
        ListFiles | None, Field(description="files with one entry of allow per line")
    ] = None
    deny_file: Annotated[ListFiles, Field(description="files with one entry of deny per line")] = ()
    access_times: Annotated[
        Windows | None, Field(description='when the service is open, such as "mon-fri 08:00-18:00"')
    ] = None
    time_zone: Annotated[
        TimeZone, Field(description="time zone of access-times; default: that of the machine")
    ] = ""


class Service(Confinement, Access, Limits):
    """One service entry: a plugin, the addresses it listens on, and how it is confined."""

    plugin: Annotated[str, Field(min_length=1, description="name of an installed plugin")]
    listen: Annotated[Addresses, Field(description="addresses, such as tcp://*:7")]
    enabled: Annotated[
        bool, Field(description="false: the service is checked, but not started")
    ] = True
    wait: Annotated[
        bool,
        Field(description="the plugin gets the listening socket itself; see exec"),
    ] = False
    options: Annotated[dict[str, Any], Field(description="the plugin's own options")] = Field(
        default_factory=dict
    )

    model: Annotated[
        Literal["loop", "thread", "fork", "prefork"] | None,
        Field(
            description="how connections are served: by the worker's event loop, or each by a"
            " thread, by a process forked for it, or by a process forked in advance; default:"
            " loop, or thread if the plugin can only block"
        ),
    ] = None
    threads: Annotated[
        int, Field(ge=1, le=4096, description="thread: maximum number of threads")
    ] = 64
    processes: Annotated[int, Field(ge=1, le=1024, description="prefork: number of processes")] = 5
    max_requests: Annotated[
        int,
        Field(
            ge=0,
            le=LARGEST_LIMIT,
            description="prefork: connections after which a process is replaced; 0: never",
        ),
    ] = 1000

    backlog: Annotated[
        int,
        Field(ge=1, le=65535, description="maximum number of connections that wait to be accepted"),
    ] = 4096
    keepalive: Annotated[
        bool, Field(description="detect clients that have vanished (SO_KEEPALIVE)")
    ] = True
    nodelay: Annotated[bool, Field(description="send small writes at once (TCP_NODELAY)")] = True
    free_bind: Annotated[
        bool, Field(description="bind addresses that the machine does not have yet")
    ] = False
    device: Annotated[
        str, Field(max_length=15, description="accept only from this network interface")
    ] = ""

    first_byte_timeout: Annotated[
        Duration, Field(description="time-out for the first byte of the client; 0: none")
    ] = 0.0
    idle_timeout: Annotated[
        Duration, Field(description="time-out without a byte in either direction; 0: none")
    ] = 0.0
    session_timeout: Annotated[
        Duration, Field(description="time-out for the whole connection; 0: none")
    ] = 0.0

    on_limit: Annotated[
        Literal["wait", "reject", "tarpit"] | None,
        Field(
            description="what happens at a limit; default: wait at the limits of the service,"
            " reject at those of a source"
        ),
    ] = None
    banner_refused: Annotated[
        str, Field(max_length=4096, description="text that is sent to rejected clients")
    ] = ""

    record: Annotated[
        Events, Field(description="events of a connection that are recorded; [] for none")
    ] = ("accepted", "closed", "refused", "noted")

    amplify: Annotated[
        bool, Field(description="datagrams: an answer may be longer than its request")
    ] = False
    reflection_guard: Annotated[
        bool,
        Field(description="datagrams: do not answer ports below 1024 or superd's own services"),
    ] = True

    @property
    def forks(self) -> bool:
        """Whether processes that a worker forks serve the connections."""
        return self.model in FORKING_MODELS

    @property
    def confinement(self) -> Confinement:
        """The part of the entry that decides which services may share a worker."""
        fields = Confinement.model_fields
        return Confinement.model_construct(**{name: getattr(self, name) for name in fields})


class Defaults(Service):
    """The [defaults] table: values for services that do not have the key themselves."""

    plugin: Annotated[str, Field(min_length=1, description="name of an installed plugin")] = (
        "(none)"
    )
    listen: Annotated[Addresses, Field(description="addresses, such as tcp://*:7")] = ()


LogFormat = Literal["text", "json", "xinetd"]
LogLevel = Literal["debug", "info", "warning", "error"]


def _watchdog(seconds: float) -> float:
    if 0 < seconds < 1:
        raise ValueError('expected "1s" or more, or "0s" for never: short pauses are normal')
    return seconds


class Daemon(Limits):
    """The [daemon] table: the process as a whole. Its limits are for all services together."""

    workers: Annotated[
        Annotated[int, Field(ge=1, le=256)] | Literal["auto"],
        Field(description='processes per pool; "auto" is one per core'),
    ] = 1
    pid_file: Annotated[
        FilePath | None, Field(description="file with the process id of the master")
    ] = None
    control_socket: Annotated[
        SocketPath | None, Field(description="socket for `superd status` and other commands")
    ] = None
    log: Annotated[
        LogSinks,
        Field(description='"stderr", "syslog", "journal" or the path of a file, or a list'),
    ] = ("stderr",)
    log_format: Annotated[LogFormat, Field(description="format of log lines")] = "text"
    log_level: Annotated[
        LogLevel, Field(description="least severe level that is logged; records have none")
    ] = "info"
    record_log: Annotated[
        LogSinks, Field(description="where connections are recorded; default: as log")
    ] = ()
    record_format: Annotated[
        LogFormat | None, Field(description="format of records; default: as log-format")
    ] = None
    ban_file: Annotated[
        FilePath | None, Field(description="file in which bans survive a restart")
    ] = None
    never_ban: Annotated[
        Networks, Field(description="addresses and networks that cannot be banned")
    ] = ()
    on_bind_failure: Annotated[
        Literal["serve-others", "stop"],
        Field(description="if an address cannot be bound at the start: try it again, or stop"),
    ] = "serve-others"
    drain_timeout: Annotated[
        Duration, Field(description="how long connections may continue after a stop")
    ] = 30.0
    reload_drain_timeout: Annotated[
        Duration,
        Field(
            description="how long connections may continue after a reload or upgrade; 0: no limit"
        ),
    ] = 0.0
    watchdog: Annotated[
        Duration,
        AfterValidator(_watchdog),
        Field(description="a worker whose event loop is blocked for longer is replaced; 0: never"),
    ] = 4.0
    include: Annotated[
        Strings, Field(description="files with more services, relative to this one")
    ] = ()
    loop: Annotated[
        Literal["auto", "uvloop", "asyncio"],
        Field(description="event loop of the workers; auto: the faster one for their services"),
    ] = "auto"
    confinement: Annotated[
        Literal["auto", "require"],
        Field(description='"require": exit with 77 if a service cannot be confined as configured'),
    ] = "auto"


class Settings(Section):
    """A whole configuration that has been checked. `texts` has the text of each of its files by
    name, the main file first.
    """

    file: Path
    texts: dict[str, str]
    daemon: Daemon
    services: dict[str, Service]

    @property
    def digest(self) -> str:
        """A hash of the texts, without the names of the files."""
        return sha256("\0".join(self.texts.values()).encode()).hexdigest()

    @property
    def enabled(self) -> dict[str, Service]:
        return {name: entry for name, entry in self.services.items() if entry.enabled}


SERVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
