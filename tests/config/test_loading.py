"""Configuration files: accepted and rejected ones, included files, and the settings."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from superd.config.loading import load
from superd.config.reading import LARGEST_FILE
from superd.errors import ConfigurationError, ExitCode
from superd.net.addresses import MAX_ADDRESSES
from tests.config.configurations import mistakes, one_mistake, read, written

LOADING_TIME_LIMIT = 1  # second
ECHO = '[service.{0}]\nplugin = "echo"\nlisten = "unix://@{0}"\n'


def rejection(file: Path) -> str:
    """Return why a file is rejected, which must take less than a second."""
    before = time.monotonic()
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    assert time.monotonic() - before < LOADING_TIME_LIMIT
    assert caught.value.exit_code == ExitCode.CONFIGURATION
    return str(caught.value).removeprefix(f"{file}: ")


def test_loading_a_file_returns_its_settings(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        """
        [daemon]
        workers = "auto"
        pid-file = "run/pid"
        drain-timeout = "1m30s"

        [defaults]
        user = "root"
        idle-timeout = "5m"
        rlimits = { nofile = 100 }

        [service.one]
        plugin = "echo"
        listen = ["tcp://[::1]:7-8", "unix:///run/one?mode=0600"]
        idle-timeout = 0

        [service.two]
        plugin = "qotd"
        listen = "udp://127.0.0.1:17"
        enabled = false
        options = { quotes = "quotes", any = ["thing"] }
        """,
    ).settings
    assert settings.file == tmp_path / "superd.toml"
    assert settings.daemon.workers == "auto"
    assert settings.daemon.pid_file == tmp_path / "run/pid"
    assert settings.daemon.drain_timeout == 90
    one, two = settings.services["one"], settings.services["two"]
    assert [str(a) for a in one.listen] == ["tcp://[::1]:7", "tcp://[::1]:8", "unix:///run/one"]
    assert one.listen[2].mode == 0o600
    assert (one.idle_timeout, two.idle_timeout) == (0, 300)
    assert one.user == two.user == 0
    assert one.rlimits.nofile == 100
    assert two.options == {"quotes": "quotes", "any": ["thing"]}
    assert list(settings.enabled) == ["one"]


def test_settings_are_frozen(tmp_path: Path) -> None:
    settings = read(tmp_path, ECHO.format("a")).settings
    service: Any = settings.services["a"]
    for table, key in [(settings, "daemon"), (settings.daemon, "workers"), (service, "nice"),
                       (service.rlimits, "core"), (service.listen[0], "port")]:  # fmt: skip
        with pytest.raises((ValidationError, AttributeError)):
            setattr(table, key, 1)
    assert hash(service.confinement) == hash(service.confinement)


def test_a_configuration_with_a_problem_has_no_settings(tmp_path: Path) -> None:
    configuration = read(tmp_path, ECHO.format("a") + "nice = 50\n")
    assert list(configuration.partial.services) == ["a"]
    with pytest.raises(ConfigurationError, match="nice"):
        _ = configuration.settings


# Rejected files


def test_a_path_that_is_not_a_regular_file_is_rejected_immediately(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "missing")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    assert rejection(tmp_path) == "is a directory"
    assert rejection(tmp_path / "fifo") == "is not a regular file"
    assert rejection(Path("/dev/zero")) == "is not a regular file"
    assert rejection(Path("/dev/null")) == "is not a regular file"
    assert rejection(tmp_path / "socket") == "No such device or address"
    assert rejection(tmp_path / "loop") == "Too many levels of symbolic links"
    assert rejection(tmp_path / "missing") == "No such file or directory"
    assert rejection(tmp_path / "dangling") == "No such file or directory"
    assert rejection(tmp_path / ("x" * 300)) == "File name too long"
    assert rejection(written(tmp_path, "") / "x") == "Not a directory"


def test_a_file_above_the_size_limit_is_rejected_before_it_is_read(tmp_path: Path) -> None:
    file = written(tmp_path, b"")
    os.truncate(file, LARGEST_FILE)
    assert "not TOML" in rejection(file)
    os.truncate(file, LARGEST_FILE + 1)
    assert rejection(file) == "is larger than 1 MiB"
    os.truncate(file, 1 << 40)
    assert rejection(file) == "is larger than 1 MiB"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        f"[{'a.' * 20_000}a]",
        f"{'a.' * 20_000}a = 1",
        "a = " + "[" * 100_000,
        "a = " + "{a=" * 30_000,
        "a = " + "1" * 100_000,
        "a = 0x" + "f" * 100_000,
        'a = "' + "x" * 1_000_000,
        "a = '''" + "\n" * 1_000_000,
        "\0" * 100_000,
        "\x1b]0;title\x07 = 1",
        "\ufeff\ufeff[service]",
        "a = 9999-99-99",
        "a = 0000-01-01",
        'a = "\\ud800"',
        'a = "\\U00110000"',
    ],
    ids=lambda text: f"{text[:12]!r}...{len(text)}",
)
def test_hostile_text_is_rejected_immediately(tmp_path: Path, text: str) -> None:
    message = rejection(written(tmp_path, text))
    assert message.isprintable()
    assert len(message) < 1000


def test_random_bytes_are_rejected(tmp_path: Path) -> None:
    for seed in range(50):
        raw = bytes((seed * 7 + n * n + n // 7) % 256 for n in range(3000))
        assert "not TOML" in rejection(written(tmp_path, raw))


@pytest.mark.root
def test_superd_as_root_rejects_a_file_that_other_users_can_write(tmp_path: Path) -> None:
    file = written(tmp_path, ECHO.format("a"))
    for mode in (0o620, 0o602, 0o666):
        file.chmod(mode)
        assert "can be written by others" in rejection(file)
    for mode in (0o600, 0o644, 0o755):
        file.chmod(mode)
        assert not load(file).problems
    os.chown(file, 65534, 65534)
    assert "belongs to another user" in rejection(file)


@pytest.mark.root
def test_superd_as_root_rejects_an_included_file_that_other_users_can_write(tmp_path: Path) -> None:
    included = written(tmp_path, ECHO.format("b"), "superd.d/b.toml")
    main = '[daemon]\ninclude = "superd.d/*.toml"\n' + ECHO.format("a")
    assert mistakes(tmp_path, main) == []
    included.chmod(0o666)
    [mistake] = mistakes(tmp_path, main)
    assert mistake.startswith("superd.d/b.toml: can be written by others")


# Included files


def test_the_files_of_a_pattern_are_included_in_alphabetical_order(tmp_path: Path) -> None:
    for name in ("20", "3", "10"):
        written(tmp_path, ECHO.format(f"s{name}"), f"superd.d/{name}.toml")
    written(tmp_path, ECHO.format("named"), "extra.conf")
    main = '[daemon]\ninclude = ["superd.d/*.toml", "extra.conf"]\n' + ECHO.format("main")
    services = list(read(tmp_path, main).settings.services)
    assert services == ["main", "s10", "s20", "s3", "named"]


def test_included_services_inherit_the_defaults_of_the_main_file(tmp_path: Path) -> None:
    written(tmp_path, ECHO.format("b"), "b.toml")
    main = '[daemon]\ninclude = "b.toml"\n[defaults]\nnice = 7\n'
    assert read(tmp_path, main).settings.services["b"].nice == 7


@pytest.mark.parametrize(
    "name",
    ["b.toml~", "#b.toml#", ".#b.toml", ".b.toml.swp", ".b.toml", "b.toml.bak", "b.toml.orig",
     "b.toml.rej", "b.toml.dpkg-old", "b.toml.dpkg-dist", "b.toml.rpmsave", "b.toml.ucf-old"],
)  # fmt: skip
@pytest.mark.parametrize("pattern", ["superd.d/*", "superd.d/*.toml*", "*/*"])
def test_backup_files_of_editors_and_package_managers_are_not_included(
    tmp_path: Path, name: str, pattern: str
) -> None:
    written(tmp_path, ECHO.format("b"), "superd.d/b.toml")
    written(tmp_path, "not TOML", f"superd.d/{name}")
    main = f'[daemon]\ninclude = "{pattern}"\n'
    assert list(read(tmp_path, main).settings.services) == ["b"]


def test_a_lock_of_emacs_is_not_included(tmp_path: Path) -> None:
    written(tmp_path, ECHO.format("b"), "superd.d/b.toml")
    (tmp_path / "superd.d/.#b.toml").symlink_to("root@host.1234:5678")
    assert mistakes(tmp_path, '[daemon]\ninclude = "superd.d/*.toml"\n') == []


def test_a_file_is_included_once_and_the_main_file_never(tmp_path: Path) -> None:
    written(tmp_path, ECHO.format("b"), "b.toml")
    (tmp_path / "c.toml").symlink_to("b.toml")
    main = '[daemon]\ninclude = ["*.toml", "b.toml", "superd.toml"]\n' + ECHO.format("a")
    assert list(read(tmp_path, main).settings.services) == ["a", "b"]


def test_a_directory_with_a_link_to_itself_is_read_once(tmp_path: Path) -> None:
    written(tmp_path, ECHO.format("b"), "superd.d/b.toml")
    (tmp_path / "superd.d/loop").symlink_to(tmp_path / "superd.d")
    main = '[daemon]\ninclude = ["superd.d/*.toml", "*/*/*/*/*.toml"]\n'
    assert list(read(tmp_path, main).settings.services) == ["b"]


def test_an_included_pattern_may_match_no_file_but_a_name_must_exist(tmp_path: Path) -> None:
    main = '[daemon]\ninclude = ["none.d/*.toml", "none.toml"]\n' + ECHO.format("a")
    expected = ["superd.toml:2:29: daemon.include[1]: there is no file none.toml"]
    assert mistakes(tmp_path, main) == expected


@pytest.mark.parametrize(
    "pattern",
    ["", ".", "/etc/*.toml", "/etc/superd.toml", "../*.toml", "a/../../b.toml", "**/*.toml",
     "a\\u0000b"],
)  # fmt: skip
def test_a_pattern_outside_the_directory_of_the_main_file_is_rejected(
    tmp_path: Path, pattern: str
) -> None:
    main = f'[daemon]\ninclude = ["x*", "{pattern}"]\n' + ECHO.format("a")
    found = one_mistake(tmp_path, main)
    assert found.startswith("2:18: daemon.include[1]: expected files beside or below this one")


def test_an_included_file_may_have_only_services(tmp_path: Path) -> None:
    written(tmp_path, "[daemon]\n[defaults]\n[other]\n" + ECHO.format("b"), "b.toml")
    found = mistakes(tmp_path, '[daemon]\ninclude = "b.toml"\n')
    main = tmp_path / "superd.toml"
    only = ": only the main file, {}, has a [{}]"
    assert [line.replace(str(main), "superd.toml") for line in found] == [
        "b.toml:1:2: daemon: unknown key" + only.format("superd.toml", "daemon"),
        "b.toml:2:2: defaults: unknown key" + only.format("superd.toml", "defaults"),
        "b.toml:3:2: other: unknown key",
    ]


def test_the_mistakes_of_all_files_are_reported_together(tmp_path: Path) -> None:
    written(tmp_path, "broken", "a.toml")
    written(tmp_path, ECHO.format("b") + "nice = 50", "b.toml")
    (tmp_path / "c.toml").mkdir()
    found = mistakes(tmp_path, '[daemon]\nlog = 1\ninclude = "?.toml"\n' + ECHO.format("d"))
    assert [line.split(": ")[0] for line in found] == [
        "a.toml:1:7",
        "b.toml:4:8",
        "c.toml",
        "superd.toml:2:7",
    ]


def test_a_service_in_two_files_is_rejected_with_both_positions(tmp_path: Path) -> None:
    written(tmp_path, "\n\n" + ECHO.format("a"), "b.toml")
    [mistake] = mistakes(tmp_path, '[daemon]\ninclude = "b.toml"\n\n' + ECHO.format("a"))
    assert mistake == ("b.toml:3:10: service.a: the service is defined already, at superd.toml:4")


def test_a_service_twice_in_a_file_is_rejected_with_both_positions(tmp_path: Path) -> None:
    mistake = one_mistake(tmp_path, ECHO.format("a") + ECHO.format("b") + ECHO.format("a"))
    assert mistake == "7:10: service.a: is defined already, at line 1"


@pytest.mark.parametrize("name", ["a", "A.b_c+d-e", "0", "www.example.org", "x" * 64])
def test_a_service_name_of_letters_digits_and_punctuation_is_accepted(
    tmp_path: Path, name: str
) -> None:
    text = f'[service."{name}"]\nplugin = "echo"\nlisten = "unix://@a"'
    assert list(read(tmp_path, text).settings.services) == [name]


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", ".a", "a/b", "ä", "a\\nb", "x" * 65])
def test_any_other_service_name_is_rejected(tmp_path: Path, name: str) -> None:
    text = f'[service."{name}"]\nplugin = "echo"\nlisten = "unix://@a"'
    assert "a service's name has" in one_mistake(tmp_path, text)


# Addresses of several services

TWO_SERVICES = """
[service.a]
plugin = "echo"
listen = {0}
[service.b]
plugin = "echo"
listen = {1}
"""


@pytest.mark.parametrize(
    ("first", "second", "place", "what"),
    [
        ('"tcp://[::1]:7"', '"tcp://[::1]:7"', "7:10", "tcp://[::1]:7"),
        ('"tcp://[::1]:7"', '["unix://@b", "tcp://[0:0::1]:7"]', "7:24", "tcp://[::1]:7"),
        ('"udp://*:7"', '["udp://0.0.0.0:7"]', "7:11", "udp://0.0.0.0:7"),
        ('"udp://[::]:7"', '["udp://*:7"]', "7:11", "udp://[::]:7"),
        ('"tcp://[::1]:10-20"', '"tcp://[::1]:15-30"', "7:10", "tcp://[::1]:15"),
        ('"tcp://127.0.0.1:7"', '"tcp://[::ffff:127.0.0.1]:7"', "7:10", "tcp://127.0.0.1:7"),
        ('"unix:///run/a"', '"unix:///run/a?mode=0600"', "7:10", "unix:///run/a"),
        ('"unix:///run/a"', '"unixgram:///run/a"', "7:10", "unixgram:///run/a"),
        ('"unix:///run/a"', '"unix:///run/./a"', "7:10", "unix:///run/./a"),
        ('"unix://@a"', '"unix://@a"', "7:10", "unix://@a"),
    ],
)
def test_two_services_on_one_address_are_rejected(
    tmp_path: Path, first: str, second: str, place: str, what: str
) -> None:
    mistake = one_mistake(tmp_path, TWO_SERVICES.format(first, second))
    assert mistake.startswith(f"{place}: service.b.listen")
    assert mistake.endswith(f"{what} is listened on by service.a already")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('"tcp://[::1]:7"', '"udp://[::1]:7"'),
        ('"tcp://*:7"', '["tcp://127.0.0.1:7", "tcp://[::1]:7"]'),
        ('["tcp://[::1]:0", "tcp://[::1]:0"]', '"tcp://[::1]:0"'),
        ('"tcp://0.0.0.0:7"', '"tcp://[::]:7"'),
        ('"unix://@a"', '"unixgram://@a"'),
        ('"tcp://*:7"\ndevice = "eth0"', '"tcp://*:7"\ndevice = "eth1"'),
        ('"tcp://*:7"\nenabled = false', '"tcp://*:7"'),
    ],
)
def test_two_services_on_different_addresses_are_accepted(
    tmp_path: Path, first: str, second: str
) -> None:
    assert mistakes(tmp_path, TWO_SERVICES.format(first, second)) == []


def test_a_service_with_one_address_twice_is_rejected(tmp_path: Path) -> None:
    text = TWO_SERVICES.format('["tcp://[::1]:7", "udp://[::1]:7", "tcp://[::1]:7"]', '"unix://@b"')
    assert one_mistake(tmp_path, text).startswith("4:45: service.a.listen[2]: tcp://[::1]:7 is")


def test_an_address_in_the_defaults_is_rejected_for_two_services(tmp_path: Path) -> None:
    text = '[defaults]\nplugin = "echo"\nlisten = "unix://@a"\n[service.a]\n[service.b]\n'
    assert one_mistake(tmp_path, text).startswith("3:10: defaults.listen: unix://@a is listened on")


def test_more_addresses_than_the_maximum_are_rejected(tmp_path: Path) -> None:
    many = TWO_SERVICES.format('"tcp://[::1]:1-65535"', '"tcp://[::2]:1-65535"')
    assert f"more than {MAX_ADDRESSES} addresses" in one_mistake(tmp_path, many)


@pytest.mark.file("/etc/services")
def test_names_of_ports_are_looked_up_and_names_of_hosts_are_not(tmp_path: Path) -> None:
    text = TWO_SERVICES.format('"tcp://localhost:http"', '"unix://@b"')
    found = read(tmp_path, text).settings.services["a"].listen
    assert [str(address) for address in found] == ["tcp://localhost:80"]
    assert found[0].is_name
