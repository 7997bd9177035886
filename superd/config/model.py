"""What a configuration may say: every key, its type, its default and its meaning.

Runs wherever a configuration is read. The models are frozen: a new configuration is a new object.
Never looks at the system beyond users and groups. Raises pydantic's ValidationError.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
)
from pydantic_core import CoreSchema

from superd.config.lists import Events, ListFiles, Networks, Patterns, TimeZone, Windows
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

LARGEST_LIMIT = 1 << 30  # more than any machine has, and within what setrlimit(2) takes

METRICS = "metrics"  # the plugin that tells of superd itself
TCPMUX = "tcpmux"  # the plugin that passes connections on to who listens on tcpmux://NAME

BLOCKING_MODELS = ("thread", "fork", "prefork")
FORKING_MODELS = ("fork", "prefork")


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _take_what_toml_has(schema: Any, resolve: Callable[[CoreSchema], CoreSchema]) -> None:
    """Let arrays be tuples and sets, and strings paths, addresses and members of an enumeration;
    the rest is strict.
    """
    if isinstance(schema, list):
        for item in schema:
            _take_what_toml_has(item, resolve)
    elif isinstance(schema, dict):
        if schema.get("type") == "definition-ref":
            schema = resolve(cast(CoreSchema, schema))
            if schema["type"] == "model":
                return  # that one has been here itself, or refers to this one
        if schema.get("type") in ("tuple", "set", "frozenset", "enum", "lax-or-strict"):
            schema["strict"] = False
        for key, inner in schema.items():
            if key not in ("metadata", "default"):
                _take_what_toml_has(inner, resolve)


class Section(BaseModel):
    """A table of the configuration. Keys are written with hyphens; an unknown key is an error."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", alias_generator=_kebab, defer_build=True
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _take_what_toml_has(handler.resolve_ref_schema(schema), handler.resolve_ref_schema)
        return schema


def _chroot(path: str) -> str:
    if path and not path.startswith("/"):
        raise ValueError('expected a directory\'s absolute path, or "" for none')
    return path.rstrip("/") or path


class Rlimits(Section):
    """Resource limits of a worker, soft and hard alike (setrlimit(2))."""

    nofile: Annotated[
        Annotated[int, Field(ge=16, le=LARGEST_LIMIT)] | None, Field(description="open files")
    ] = None
    nproc: Annotated[
        Annotated[int, Field(ge=0, le=LARGEST_LIMIT)] | None,
        Field(description="processes of the user"),
    ] = None
    core: Annotated[Size, Field(description="size of a core dump")] = 0
    memory: Annotated[Size | None, Field(description="address space")] = None
    file_size: Annotated[Size | None, Field(description="largest file that may be written")] = None
    cpu: Annotated[Duration | None, Field(description="processor time")] = None


class Confinement(Section):
    """What a worker gives up before it meets a client. Services that share it share a pool."""

    user: Annotated[
        User | None, Field(description="user to become; started as root the default is nobody")
    ] = None
    group: Annotated[Group | None, Field(description="group; the default is the user's own")] = None
    groups: Annotated[Groups, Field(description="supplementary groups")] = ()
    chroot: Annotated[
        str, AfterValidator(_chroot), Field(description='directory to be locked in; "" for none')
    ] = ""
    umask: Annotated[Umask, Field(description="file mode creation mask")] = 0o077
    nice: Annotated[int, Field(ge=-20, le=19, description="scheduling priority")] = 0
    rlimits: Annotated[Rlimits, Field(description="resource limits")] = Rlimits()
    no_new_privs: Annotated[
        bool, Field(description="programs cannot gain privileges (prctl(2))")
    ] = True
    pool: Annotated[
        str, Field(description="services of another pool never share a process with these")
    ] = ""


class SourceNetblock(Section):
    """How much of an address is one source, in bits: who has one address often has all of them."""

    ipv4: Annotated[int, Field(ge=0, le=32, description="bits of an IPv4 address")] = 32
    ipv6: Annotated[int, Field(ge=0, le=128, description="bits of an IPv6 address")] = 64


MostConnections = Annotated[int, Field(ge=0, le=LARGEST_LIMIT)]


class Limits(Section):
    """How many may come in, and how fast. 0 is no limit."""

    max_connections: Annotated[MostConnections, Field(description="connections at a time")] = 0
    rate: Annotated[Rate, Field(description="new connections, or datagrams, in a time")] = 0.0
    burst: Annotated[
        MostConnections, Field(description="how many at once; the default is a second's worth")
    ] = 0
    max_per_source: Annotated[
        MostConnections, Field(description="connections of one source at a time")
    ] = 0
    rate_per_source: Annotated[Rate, Field(description="the same as rate for each source")] = 0.0
    burst_per_source: Annotated[
        MostConnections, Field(description="the same as burst for each source")
    ] = 0
    source_netblock: Annotated[
        SourceNetblock, Field(description="how many bits of an address are one source")
    ] = SourceNetblock()
    max_load: Annotated[
        float, Field(ge=0, le=1e6, description="the system's load average of the last minute")
    ] = 0.0


class Access(Section):
    """Who may come in, and when."""

    allow: Annotated[
        Patterns | None,
        Field(description='who may come in; without it, whoever is not denied; "*" is everybody'),
    ] = None
    deny: Annotated[Patterns, Field(description="who may not; the more specific rule wins")] = ()
    allow_file: Annotated[
        ListFiles | None, Field(description="files with one entry of allow a line")
    ] = None
    deny_file: Annotated[ListFiles, Field(description="files with one entry of deny a line")] = ()
    access_times: Annotated[
        Windows | None, Field(description='when it is open, such as "mon-fri 08:00-18:00"')
    ] = None
    time_zone: Annotated[
        TimeZone, Field(description="of access-times; the default is the machine's own")
    ] = ""


class Service(Confinement, Access, Limits):
    """One service entry: a plugin, the addresses it listens on, and how it is confined."""

    plugin: Annotated[str, Field(min_length=1, description="name of an installed plugin")]
    listen: Annotated[Addresses, Field(description="addresses, such as tcp://*:7")]
    enabled: Annotated[bool, Field(description="false: checked, but not served")] = True
    wait: Annotated[
        bool,
        Field(description="the plugin has the listening socket itself, one at a time; see exec"),
    ] = False
    options: Annotated[dict[str, Any], Field(description="the plugin's own options")] = Field(
        default_factory=dict
    )

    model: Annotated[
        Literal["loop", "thread", "fork", "prefork"] | None,
        Field(
            description="how connections are served: all by the worker's event loop, or each by a"
            " thread, by a process that is forked for it, or by one that was forked before; the"
            " default is the loop, and threads for handlers that block"
        ),
    ] = None
    threads: Annotated[int, Field(ge=1, le=4096, description="thread: how many at most")] = 64
    processes: Annotated[int, Field(ge=1, le=1024, description="prefork: how many there are")] = 5
    max_requests: Annotated[
        int,
        Field(
            ge=0,
            le=LARGEST_LIMIT,
            description="prefork: connections until a process is replaced; 0 for never",
        ),
    ] = 1000

    backlog: Annotated[
        int, Field(ge=1, le=65535, description="connections that wait to be accepted")
    ] = 4096
    keepalive: Annotated[bool, Field(description="find dead peers (SO_KEEPALIVE)")] = True
    nodelay: Annotated[bool, Field(description="send small writes at once (TCP_NODELAY)")] = True
    free_bind: Annotated[
        bool, Field(description="listen on an address that the machine does not have yet")
    ] = False
    device: Annotated[str, Field(max_length=15, description="only this network interface")] = ""

    first_byte_timeout: Annotated[
        Duration, Field(description="until the client has sent something; 0 for none")
    ] = 0.0
    idle_timeout: Annotated[
        Duration, Field(description="without a byte in either direction; 0 for none")
    ] = 0.0
    session_timeout: Annotated[
        Duration, Field(description="for the whole connection; 0 for none")
    ] = 0.0

    on_limit: Annotated[
        Literal["wait", "reject", "tarpit"] | None,
        Field(
            description="what becomes of a client beyond a limit; the default is to wait at the"
            " service's own, and to be rejected at those of its source"
        ),
    ] = None
    banner_refused: Annotated[
        str, Field(max_length=4096, description="text for a client that is rejected")
    ] = ""

    record: Annotated[
        Events, Field(description="which events of a connection are recorded; [] for none")
    ] = ("accepted", "closed", "refused", "noted")

    amplify: Annotated[
        bool, Field(description="datagrams: an answer may be longer than its request")
    ] = False
    reflection_guard: Annotated[
        bool,
        Field(description="datagrams: never answer ports below 1024 nor what superd serves"),
    ] = True

    @property
    def forks(self) -> bool:
        """Whether connections are served by processes that a worker forks."""
        return self.model in FORKING_MODELS

    @property
    def confinement(self) -> Confinement:
        """The part of the entry that decides which services may share a worker."""
        fields = Confinement.model_fields
        return Confinement.model_construct(**{name: getattr(self, name) for name in fields})


class Defaults(Service):
    """The [defaults] table: any key of a service entry, for all of those that do not have it."""

    plugin: Annotated[str, Field(min_length=1, description="name of an installed plugin")] = (
        "(none)"
    )
    listen: Annotated[Addresses, Field(description="addresses, such as tcp://*:7")] = ()


LogFormat = Literal["text", "json", "xinetd"]
LogLevel = Literal["debug", "info", "warning", "error"]


def _watchdog(seconds: float) -> float:
    if 0 < seconds < 1:
        raise ValueError('expected "1s" or more, or "0s" for never; less could hit the innocent')
    return seconds


class Daemon(Limits):
    """The [daemon] table: the process as a whole. Its limits are for all services together."""

    workers: Annotated[
        Annotated[int, Field(ge=1, le=256)] | Literal["auto"],
        Field(description='processes per pool; "auto" is one per core'),
    ] = 1
    pid_file: Annotated[FilePath | None, Field(description="where the master's number stands")] = (
        None
    )
    control_socket: Annotated[
        SocketPath | None, Field(description="where `superd status` asks")
    ] = None
    log: Annotated[
        LogSinks,
        Field(description='"stderr", "syslog", "journal" or a file\'s path, or several of them'),
    ] = ("stderr",)
    log_format: Annotated[LogFormat, Field(description="form of a log line")] = "text"
    log_level: Annotated[
        LogLevel, Field(description="least severe level that is logged; events have none")
    ] = "info"
    record_log: Annotated[
        LogSinks, Field(description="where connections are recorded; the default is the log")
    ] = ()
    record_format: Annotated[
        LogFormat | None, Field(description="form of these lines; the default is log-format")
    ] = None
    ban_file: Annotated[FilePath | None, Field(description="where bans outlive a restart")] = None
    never_ban: Annotated[
        Networks, Field(description="addresses and networks that no ban may touch")
    ] = ()
    drain_timeout: Annotated[
        Duration, Field(description="how long connections may go on after a stop")
    ] = 30.0
    reload_drain_timeout: Annotated[
        Duration,
        Field(
            description="how long connections may go on after a reload or an upgrade; 0 for ever"
        ),
    ] = 0.0
    watchdog: Annotated[
        Duration,
        AfterValidator(_watchdog),
        Field(description="time that an event loop may be blocked until its worker is replaced"),
    ] = 4.0
    include: Annotated[
        Strings, Field(description="files with more services, relative to this one")
    ] = ()
    loop: Annotated[
        Literal["auto", "uvloop", "asyncio"],
        Field(description="event loop of the workers; auto is the faster for what they do"),
    ] = "auto"
    confinement: Annotated[
        Literal["auto", "require"],
        Field(description='"require": exit 77 where a service cannot be confined as it says'),
    ] = "auto"


class Settings(Section):
    """A whole configuration, checked: what the master works from. `texts` are the files that it was
    read from, by name, the main one first.
    """

    file: Path
    texts: dict[str, str]
    daemon: Daemon
    services: dict[str, Service]

    @property
    def digest(self) -> str:
        """What stands for the texts, whatever the names are that their files were opened by."""
        return sha256("\0".join(self.texts.values()).encode()).hexdigest()

    @property
    def enabled(self) -> dict[str, Service]:
        return {name: entry for name, entry in self.services.items() if entry.enabled}


SERVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
