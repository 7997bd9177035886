"""The problem of each kind of mistake: its text in TOML's terms, its line and its column."""
# ruff: noqa: E501, RUF012  (a row of a table is a case; pydantic copies a default)

from __future__ import annotations

import datetime
import enum
import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tomli
from pydantic import BaseModel, Field, ValidationError

from superd.config.model import Daemon, Defaults, Rlimits, Service
from superd.config.positions import find_places
from superd.config.problems import Document, problems_of
from superd.plugin import Options, PositiveDuration, Size
from tests.config.configurations import mistakes, one_mistake

DURATION = 'expected a duration such as "250ms", "30s", "5m", "1h30m" or "2d"'
SIZE = 'expected a size such as 4096, "64KiB", "10MiB" or "1GB"'
TRANSPORTS = "tcp://, udp://, unix://, unixgram://, unixpacket://, tcpmux://"


def daemon(line: str) -> str:
    return f'[daemon]\n{line}\n[service.a]\nplugin = "echo"\nlisten = "unix://@a"\n'


def service(line: str) -> str:
    missing = [
        text
        for key, text in [("plugin", 'plugin = "echo"'), ("listen", 'listen = "unix://@a"')]
        if not line.startswith(key)
    ]
    return "\n".join(["[service.a]", line, *missing])


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ('workers = "many"', '2:11: daemon.workers: expected an integer or "auto", found "many"'),
        (
            'workers = "autos"',
            '2:11: daemon.workers: expected an integer or "auto", found "autos"'
            ' (did you mean "auto"?)',
        ),
        (
            "workers = 0",
            '2:11: daemon.workers: expected an integer of at least 1 or "auto", found 0',
        ),
        ("workers = 1.5", '2:11: daemon.workers: expected an integer or "auto", found 1.5'),
        ("workers = true", '2:11: daemon.workers: expected an integer or "auto", found true'),
        ("pid-file = 3", "2:12: daemon.pid-file: expected a path, found 3"),
        ('control-socket = ""', '2:18: daemon.control-socket: expected a path, found ""'),
        (f'control-socket = "/{"x" * 107}"', f'2:18: daemon.control-socket: the path of a unix socket has at most 107 bytes (unix(7)), found "/{"x" * 59}..."'),
        ("log = 5", "2:7: daemon.log: expected a string, found 5"),
        ('log = ["stderr", 5]', "2:18: daemon.log[1]: expected a string, found 5"),
        (
            'log = ["stdrr"]',
            '2:8: daemon.log[0]: expected "stderr", "syslog", "journal" or a file\'s path,'
            ' found "stdrr"'
            ' (did you mean "stderr"?)',
        ),
        (
            'log-format = "jsn"',
            '2:14: daemon.log-format: expected "text", "json" or "xinetd", found "jsn"'
            ' (did you mean "json"?)',
        ),
        (
            "log-format = {}",
            '2:14: daemon.log-format: expected "text", "json" or "xinetd", found an empty table',
        ),
        ('drain-timeout = "soon"', f'2:17: daemon.drain-timeout: {DURATION}, found "soon"'),
        (
            'watchdog = "900ms"',
            '2:12: daemon.watchdog: expected "1s" or more, or "0s" for never: short'
            ' pauses are normal, found "900ms"',
        ),
        ("drain-timeout = 30", f"2:17: daemon.drain-timeout: {DURATION}, found 30"),
        ('include = ["a.toml", 1979-05-27]', "2:22: daemon.include[1]: expected a string, found 1979-05-27"),
        ("drain_timeout = 0", '2:1: daemon.drain_timeout: unknown key (did you mean "drain-timeout"?)'),
        ('"l\\nog" = 1', r'2:1: daemon."l\nog": unknown key (did you mean "log"?)'),
        ("x.y.z = 1", "2:1: daemon.x: unknown key"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_daemon_table_is_reported_at_its_position(
    tmp_path: Path, line: str, mistake: str
) -> None:
    assert one_mistake(tmp_path, daemon(line)) == mistake


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("plugin = 5", "2:10: service.a.plugin: expected a string, found 5"),
        ('plugin = ""', '2:10: service.a.plugin: expected a string of at least 1 character, found ""'),
        ("enabled = 1", "2:11: service.a.enabled: expected true or false, found 1"),
        ('enabled = "yes"', '2:11: service.a.enabled: expected true or false, found "yes"'),
        ("options = 3", "2:11: service.a.options: expected a table, found 3"),
        ("options = [{}]", "2:11: service.a.options: expected a table, found an array"),
        ("backlog = 0", "2:11: service.a.backlog: expected an integer of at least 1, found 0"),
        ("backlog = 1e3", "2:11: service.a.backlog: expected an integer, found 1000.0"),
        (f"backlog = {10**70}", "2:11: service.a.backlog: expected an integer of at most 65535, found a huge number"),
        ("nice = 20", "2:8: service.a.nice: expected an integer of at most 19, found 20"),
        ("nice = nan", "2:8: service.a.nice: expected an integer, found nan"),
        ("nodelay = inf", "2:11: service.a.nodelay: expected true or false, found inf"),
        ("pool = 07:32:00", "2:8: service.a.pool: expected a string, found 07:32:00"),
        ('device = "a-very-long-name"', '2:10: service.a.device: expected a string of at most 15 characters, found "a-very-long-name"'),
        ("umask = 63", '2:9: service.a.umask: expected a umask, which is a string in octal, such as "077", found 63'),
        ('chroot = "jail"', '2:10: service.a.chroot: expected the absolute path of a directory, or "" for none, found "jail"'),
        ('user = "rooot"', '2:8: service.a.user: there is no user "rooot" (did you mean "root"?)'),
        ('group = "rot"', '2:9: service.a.group: there is no group "rot" (did you mean "root"?)'),
        ("user = -1", "2:8: service.a.user: expected a user's name, or a number from 0 to 4294967294, found -1"),
        ('groups = ["root", "rot"]', '2:19: service.a.groups[1]: there is no group "rot" (did you mean "root"?)'),
        ("rlimits = 3", "2:11: service.a.rlimits: expected a table, found 3"),
        ("rlimits = { nofile = 3 }", "2:22: service.a.rlimits.nofile: expected an integer of at least 16, found 3"),
        ('rlimits.core = "much"', f'2:16: service.a.rlimits.core: {SIZE}, found "much"'),
        ("rlimits.cup = 1", '2:9: service.a.rlimits.cup: unknown key (did you mean "cpu"?)'),
        ("idle-timeout = -1", f"2:16: service.a.idle-timeout: {DURATION}, found -1"),
        ("listen = 7", '2:10: service.a.listen: expected an address such as "tcp://127.0.0.1:7", found 7'),
        ("listen = []", "2:10: service.a.listen: expected at least one address, found an empty array"),
        ('listen = "tcp://[::1]:70000"', '2:10: service.a.listen: there is no port 70000 (the last is 65535), found "tcp://[::1]:70000"'),
        ('listen = ["unix://@b", "tpc://[::1]:7"]', f'2:24: service.a.listen[1]: expected an address that starts with one of {TRANSPORTS}, found "tpc://[::1]:7"'),
        ('idle-timeout = "9s"\nwait = true', "2:1: service.a.idle-timeout: has no effect with wait = true; exec has options.max-run-time instead"),
        ('lisen = "x"', '2:1: service.a.lisen: unknown key (did you mean "listen"?)'),
        ('"a b" = 1', '2:1: service.a."a b": unknown key; an option of the plugin belongs in options = { "a b" = ... }'),
        ('quotes = "x"', "2:1: service.a.quotes: unknown key; an option of the plugin belongs in options = { quotes = ... }"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_service_is_reported_at_its_position(
    tmp_path: Path, line: str, mistake: str
) -> None:
    assert one_mistake(tmp_path, service(line)) == mistake


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("", "1:1: there is no service; add one, such as [service.echo]"),
        ("# nothing\n", "1:1: there is no service; add one, such as [service.echo]"),
        ("[service]\n", "1:1: there is no service; add one, such as [service.echo]"),
        ("service = 1", "1:11: service: expected a table, found 1"),
        ("daemon = []\n" + service(""), "1:10: daemon: expected a table, found an empty array"),
        ("[service]\na = 1", "2:1: service.a: expected a table, found 1"),
        ("[[service.a]]\n", "1:11: service.a: expected a table, found an array"),
        ("[servce.a]\n" + service(""), '1:2: servce: unknown key (did you mean "service"?)'),
        ("[deamon]\n" + service(""), '1:2: deamon: unknown key (did you mean "daemon"?)'),
        ("listen = 1\n" + service(""), "1:1: listen: unknown key"),
        ('[service.a]\nplugin = "echo"', "1:10: service.a.listen: is missing (addresses, such as tcp://*:7)"),
        ('[service.a]\nlisten = "unix://@a"', "1:10: service.a.plugin: is missing (name of an installed plugin)"),
        ('[service."a b"]\n', "1:10: service.\"a b\": a service's name has letters, digits and . _ + - only, 64 at most, and starts with a letter or digit"),
        ('[service."-a"]\n', "1:10: service.-a: a service's name has letters, digits and . _ + - only, 64 at most, and starts with a letter or digit"),
        ('[service."a\\u001b[2J"]\n', "1:10: service.\"a\\x1b[2J\": a service's name has letters, digits and . _ + - only, 64 at most, and starts with a letter or digit"),
        (service("enabled = false"), "2:11: service.a.enabled: no service is enabled"),
        ("[defaults]\nenabled = false\n" + service(""), "2:11: defaults.enabled: no service is enabled"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_structure_is_reported_at_its_position(
    tmp_path: Path, text: str, mistake: str
) -> None:
    assert one_mistake(tmp_path, text) == mistake


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("[service.a", "1:11: not TOML: expected ']' at the end of a table declaration"),
        ("a = 077", "1:6: not TOML: expected newline or end of document after a statement"),
        ("\ufeffa = ", "1:5: not TOML: invalid value"),
        ("x = 1\r\n\ty = [1,\r\n", "2:6: not TOML: the array is not closed"),
        ('[a]\nb = "c\nd = "e"', "2:5: not TOML: the string is not closed"),
        ("[a]\nb = 'c\n", "2:5: not TOML: the string is not closed"),
        ('a = "]" # "\nb = """c\n', "2:5: not TOML: the string is not closed"),
        ('a = ["b", "c\n', "1:11: not TOML: the string is not closed"),
        ("a = [1,\n2\n[b]\nc = 1", "1:5: not TOML: the array is not closed"),
        ("a = [[1]", "1:5: not TOML: the array is not closed"),
        ("a = { b = 1\n", "1:5: not TOML: the inline table is not closed"),
        ('a = ["b" "c"]', "1:10: not TOML: expected a comma before this value"),
        ("a = yes", "1:5: not TOML: expected true or false, found yes"),
        ("a = True # b", "1:5: not TOML: expected true or false, found True"),
        (
            "a = tcp://*:7",
            "1:5: not TOML: expected a value, found tcp://*:7; a string needs quotes",
        ),
        ("a = [b]", "1:6: not TOML: expected a value, found b; a string needs quotes"),
        ('a = "b\0"', r"1:7: not TOML: illegal character '\x00'"),
        ("a = 1979-02-30", "1:5: not TOML: invalid date or datetime"),
        ("[service.a]\n[service.b]\n[service.a]", "3:10: service.a: is defined already, at line 1"),
        ("[service.a]\nx = 1\n x = 2", "3:2: service.a.x: is defined already, at line 2"),
        ("a = [[[[[[[[[]]]]]]]]]", "1:13: nested more than 8 deep"),
        ("\n" + ".".join("abcdefghi") + " = 1", "2:1: a key has more than 8 parts"),
        ("a = " + "9" * 5000, "1:5: an unquoted value has more than 100 characters"),
    ],
)
def test_text_that_is_not_toml_is_reported_at_its_position(
    tmp_path: Path, text: str, mistake: str
) -> None:
    found = one_mistake(tmp_path, text)
    assert found.startswith(mistake)


@pytest.mark.parametrize(
    ("raw", "line", "column"),
    [
        (b"\xff", 1, 1),
        (b'a = "\xc3\xa4\xff"', 1, 7),
        (b"\xef\xbb\xbfa = 1\r\n#\xc3\xa4\xc3", 2, 3),
    ],
)
def test_a_byte_that_is_not_utf_8_is_reported_at_its_position(
    tmp_path: Path, raw: bytes, line: int, column: int
) -> None:
    mistake = one_mistake(tmp_path, raw)
    assert mistake == f"{line}:{column}: not TOML: this byte is not UTF-8"


def test_a_column_counts_characters_and_no_byte_order_mark(
    tmp_path: Path,
) -> None:
    text = '\ufeff[service.a]\r\n\tplugin\t= "echo" # ä\r\nlisten = ["unix://@ä",\t7]\r\n'
    found = one_mistake(tmp_path, text)
    assert found.startswith("3:24: service.a.listen[1]: expected an address")


def test_fifty_mistakes_are_reported_together_and_in_order(tmp_path: Path) -> None:
    lines = [f'[service.s{n}]\nplugin = "echo"\nlisten = "x"\nbackog = {n}' for n in range(25)]
    found = mistakes(tmp_path, "\n".join(lines))
    places = [(4 * n + line, column) for n in range(25) for line, column in [(3, 10), (4, 1)]]
    assert [tuple(map(int, line.split(":")[1:3])) for line in found] == places


def test_a_mistake_in_the_defaults_is_reported_once_at_its_position(tmp_path: Path) -> None:
    entries = "".join(f'[service.s{n}]\nlisten = "unix://@{n}"\n' for n in range(5))
    text = f'[defaults]\nplugin = "echo"\nnice = 50\nbaklog = 1\n{entries}'
    assert mistakes(tmp_path, text) == [
        "superd.toml:3:8: defaults.nice: expected an integer of at most 19, found 50",
        'superd.toml:4:1: defaults.baklog: unknown key (did you mean "backlog"?)',
    ]


def test_a_mistake_in_the_defaults_is_reported_even_if_every_service_overrides_it(
    tmp_path: Path,
) -> None:
    text = "[defaults]\nnice = 50\n" + service("nice = 1")
    assert "defaults.nice" in one_mistake(tmp_path, text)


def test_one_mistake_does_not_hide_another_in_the_same_table(tmp_path: Path) -> None:
    found = mistakes(tmp_path, daemon('log = 5\nworkers = 0\ninclude = "missing.toml"'))
    paths = [line.split(": ")[1] for line in found]
    assert paths == ["daemon.log", "daemon.workers", "daemon.include"]


def test_a_long_value_is_cut_and_control_characters_are_escaped(tmp_path: Path) -> None:
    mistake = one_mistake(tmp_path, service(f'umask = "{"x" * 500}"'))
    assert mistake.endswith(f'found "{"x" * 60}..."')
    mistake = one_mistake(tmp_path, service(r'umask = "a\nb\u001b[1m\u202e\"\\"'))
    assert mistake.endswith(r'found "a\nb\x1b[1m\u202e\"\\"')


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Target(Options):
    host: Annotated[str, Field(description="the host")]
    port: Annotated[int, Field(gt=0, lt=65536)] = 1


class Many(Options):
    """Options of each type that a plugin may declare."""

    word: str = ""
    count: int = 0
    ratio: Annotated[float, Field(ge=0, multiple_of=0.5)] = 0
    exact: Annotated[str, Field(pattern="^[a-z]+$")] = "a"
    day: datetime.date | None = None
    at: datetime.time | None = None
    since: datetime.datetime | None = None
    colour: Colour = Colour.RED
    colours: tuple[Colour, ...] = ()
    pair: tuple[int, str] = (1, "a")
    names: Annotated[list[str], Field(min_length=2, max_length=3)] = []
    unique: frozenset[int] = frozenset()
    table: dict[str, int] = {}
    target: Target | None = None
    targets: list[Target] = []
    by_name: dict[str, Target] = {}
    either: int | str | list[int] = 0
    choice: Literal["one", "two"] | Annotated[int, Field(ge=10)] = "one"
    finite: Annotated[float, Field(allow_inf_nan=False)] = 0
    every: PositiveDuration = 1
    file: Path | None = None
    peer: ipaddress.IPv4Address | ipaddress.IPv6Address | None = None
    inside: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    room: Annotated[Size, Field(ge=1024)] = 1024


def options_mistakes(text: str, model: type[BaseModel] = Many) -> list[str]:
    """Return the problems of a document that holds options of a plugin."""
    data = tomli.loads(text)
    document = Document("o", text, find_places(text), data)
    try:
        model.model_validate(data)
    except ValidationError as error:
        return [str(p) for p in problems_of(error, model, data, lambda path: (document, path))]
    return []


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("word = 1", "1:8: word: expected a string, found 1"),
        ("count = true", "1:9: count: expected an integer, found true"),
        ('count = "1"', '1:9: count: expected an integer, found "1"'),
        ("count = 1.5", "1:9: count: expected an integer, found 1.5"),
        ('ratio = "1"', '1:9: ratio: expected a number, found "1"'),
        ("ratio = -0.5", "1:9: ratio: expected a number of at least 0.0, found -0.5"),
        ("ratio = 0.3", "1:9: ratio: expected a number that is a multiple of 0.5, found 0.3"),
        ('exact = "A"', '1:9: exact: expected a string that matches ^[a-z]+$, found "A"'),
        ('day = "1979-05-27"', '1:7: day: expected a date, found "1979-05-27"'),
        ("at = 1979-05-27", "1:6: at: expected a time, found 1979-05-27"),
        ("since = 3", "1:9: since: expected a date and time, found 3"),
        ('colour = "rad"', '1:10: colour: expected "red" or "blue", found "rad" (did you mean "red"?)'),
        ("colour = 1", '1:10: colour: expected "red" or "blue", found 1'),
        ('colours = ["red", 7]', '1:19: colours[1]: expected "red" or "blue", found 7'),
        ('colours = "red"', '1:11: colours: expected an array, found "red"'),
        ('pair = ["a", "b"]', '1:9: pair[0]: expected an integer, found "a"'),
        ('pair = [1, "b", 2]', "1:8: pair: expected an array of at most 2 elements, found an array"),
        ("pair = [1]", "1:1: pair[1]: is missing"),
        ('names = ["a"]', "1:9: names: expected an array of at least 2 elements, found an array"),
        ("unique = 1", "1:10: unique: expected an array, found 1"),
        ('unique = [1, "a"]', '1:14: unique[1]: expected an integer, found "a"'),
        ("table = []", "1:9: table: expected a table, found an empty array"),
        ('table = { a = "b" }', '1:15: table.a: expected an integer, found "b"'),
        ("target = 1", "1:10: target: expected a table, found 1"),
        ("[target]\nport = 1", "1:2: target.host: is missing (the host)"),
        ("target = { hots = 1, host = 'a' }", '1:12: target.hots: unknown key (did you mean "host"?)'),
        ("[target]\nhost = 'a'\nport = 0", "3:8: target.port: expected an integer of more than 0, found 0"),
        ("[target]\nhost = 'a'\nport = 65536", "3:8: target.port: expected an integer of less than 65536, found 65536"),
        ("[[targets]]\nhost = 'a'\n[[targets]]\nhost = 1", "4:8: targets[1].host: expected a string, found 1"),
        ("[[targets]]\nhost = 'a'\nprot = 1", '3:1: targets[0].prot: unknown key (did you mean "port"?)'),
        ("[by-name.x]\nhost = 1", "2:8: by-name.x.host: expected a string, found 1"),
        ("[by-name.x]\nhosst = 1\nhost = 'b'", '2:1: by-name.x.hosst: unknown key (did you mean "host"?)'),
        ("either = true", "1:10: either: expected an integer or a string or an array, found true"),
        ('either = [1, "a"]', '1:14: either[1]: expected an integer, found "a"'),
        ('choice = "on"', '1:10: choice: expected "one" or "two" or an integer, found "on" (did you mean "one"?)'),
        ("choice = 3", '1:10: choice: expected "one" or "two" or an integer of at least 10, found 3'),
        ('every = "0s"', '1:9: every: expected a duration of more than 0, found "0s"'),
        ("every = 0", "1:9: every: expected a duration of more than 0, found 0"),
        ('room = "1B"', '1:8: room: expected a value of at least 1024, found "1B"'),
        ("room = 1", "1:8: room: expected an integer of at least 1024, found 1"),
        ("file = 1", "1:8: file: expected a path, found 1"),
        ('peer = "x"', '1:8: peer: expected an IPv4 address or an IPv6 address, found "x"'),
        ('inside = "x"', '1:10: inside: expected an IPv4 network or an IPv6 network, found "x"'),
        ("finite = inf", "1:10: finite: expected a finite number, found inf"),
        ("by_name = {}", '1:1: by_name: unknown key (did you mean "by-name"?)'),
    ],
)  # fmt: skip
def test_a_mistake_in_the_options_of_a_plugin_is_reported_at_its_position(
    text: str, mistake: str
) -> None:
    assert options_mistakes(text) == [f"o:{mistake}"]


def test_a_plugin_gets_paths_and_addresses_from_strings_of_toml() -> None:
    found = Many.model_validate(tomli.loads('file = "/a"\npeer = "::1"\ninside = "10.0.0.0/8"\n'))
    assert found.file == Path("/a")
    assert found.peer == ipaddress.IPv6Address("::1")
    assert found.inside == ipaddress.IPv4Network("10.0.0.0/8")


def test_a_plugin_gets_arrays_strings_and_dates_in_the_types_that_it_declares() -> None:
    text = """
        colours = ["red", "blue"]
        pair = [1, "a"]
        unique = [1, 2]
        day = 1979-05-27
        at = 07:32:00
        since = 1979-05-27T07:32:00Z
        colour = "blue"
        names = ["a", "b"]
        ratio = 2
    """
    options = Many.model_validate(tomli.loads(text))
    assert options.colours == (Colour.RED, Colour.BLUE)
    assert options.unique == {1, 2}
    assert options.pair == (1, "a")
    assert options.ratio == 2.0


def every_key() -> list[Any]:
    """Return every table with each of its keys."""
    tables: dict[str, type[BaseModel]] = {
        "[daemon]": Daemon,
        "[defaults]": Defaults,
        "[service.x]": Service,
        "[defaults.rlimits]": Rlimits,
    }
    fields = [
        (head, field) for head, model in tables.items() for field in model.model_fields.values()
    ]
    return [(head, field.alias) for head, field in fields]


@pytest.mark.parametrize(("head", "key"), every_key())
def test_no_problem_uses_words_of_python_or_pydantic(tmp_path: Path, head: str, key: str) -> None:
    values = ["-1", "0", "1.5", "nan", "true", '"?"', '""', "[]", "[[]]", "[0, {}]", "{}", "{ a = 1 }",
              "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", str(10**40)]  # fmt: skip
    for value in values:
        for line in mistakes(tmp_path, f"{head}\n{key} = {value}\n"):
            place, _, message = line.partition(": ")
            assert place.startswith("superd.toml:")
            for word in ("Input", "input", "valid ", "dict", "tuple", "None", "bool", "str ", "instance",
                         "should", "validat", "Value error", "'"):  # fmt: skip
                assert word not in message.replace("'s ", "s "), line


@pytest.mark.parametrize(("head", "key"), every_key())
def test_a_key_with_a_typo_is_rejected_with_the_right_key(
    tmp_path: Path, head: str, key: str
) -> None:
    known = {other for table, other in every_key() if table == head}
    wrong = {key[:-1], key + "x", "x" + key, key.replace("-", "_") + "_"}
    for typo in wrong - known:
        found = mistakes(tmp_path, f"{head}\n{typo} = 1\n")
        reported = [line for line in found if line.startswith("superd.toml:2:1: ")]
        assert len(reported) == 1, found
        assert "unknown key" in reported[0]
        assert f'(did you mean "{key}"?)' in reported[0] or len(key) < 5
