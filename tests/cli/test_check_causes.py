"""`superd check`: one cause is one line, at the key to change, without its consequences."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Say
from tests.config.configurations import written

FORWARD = '[service.w]\nplugin = "forward"\nlisten = "tcp://127.0.0.1:9501"\n'
OPTIONS = 'options = { to = "tcp://127.0.0.1:80" }\n'
SNIFFER = FORWARD.replace("forward", "sniffer")
ECHO = '[service.{0}]\nplugin = "echo"\nlisten = "unix://@check-{0}"\n'
BY_TCPMUX = '[service.a]\nplugin = "echo"\nlisten = "tcpmux://a"\n'
BELONGS = "unknown key; it belongs in options = {{ {} = ... }}"

CAUSES = {
    "a target beside a wrong transport": (
        FORWARD.replace("tcp:", "tcp6:") + OPTIONS,
        "3:10: service.w.listen: expected an address that starts with",
    ),
    "a target beside a transport that cannot be forwarded": (
        FORWARD.replace("tcp://127.0.0.1:9501", "unixpacket:///x") + OPTIONS,
        "3:10: service.w.listen: unixpacket addresses cannot be forwarded",
    ),
    "a loop through an entry with a mistake": (
        FORWARD + "nice = 50\n" + OPTIONS.replace("80", "9502")
        + FORWARD.replace("9501", "9502").replace(".w", ".v") + OPTIONS.replace("80", "9501"),
        "4:8: service.w.nice: expected an integer of at most 19, found 50",
    ),
    "a required option outside of options": (
        FORWARD + 'to = "tcp://127.0.0.1:80"\n', f"4:1: service.w.to: {BELONGS.format('to')}",
    ),
    "a misspelled option outside of options": (
        FORWARD + OPTIONS + "conect-timeout = 3\n",
        f"5:1: service.w.conect-timeout: {BELONGS.format('connect-timeout')}",
    ),
    "an option that is similar to a key of every service": (
        SNIFFER + 'banner = "x"\n', f"4:1: service.w.banner: {BELONGS.format('banner')}",
    ),
    "an option under defaults": (
        '[defaults]\nto = "tcp://127.0.0.1:80"\n' + FORWARD + ECHO.format("e"),
        f"2:1: defaults.to: {BELONGS.format('to')}",
    ),
    "a misspelled options": (
        FORWARD + OPTIONS.replace("options", "optons"),
        '4:1: service.w.optons: unknown key (did you mean "options"?)',
    ),
    "options that are no table": (
        FORWARD + 'options = "x"\n', '4:11: service.w.options: expected a table, found "x"',
    ),
    "a misspelled option that is required": (
        FORWARD + OPTIONS.replace("to =", "too ="),
        '4:13: service.w.options.too: unknown key (did you mean "to"?)',
    ),
    "a misspelled plugin": (
        ECHO.format("a").replace("plugin", "pluginn"),
        '2:1: service.a.pluginn: unknown key (did you mean "plugin"?)',
    ),
    "a misspelled listen under defaults": (
        '[defaults]\nlistn = "unix://@x"\n[service.a]\nplugin = "echo"\n'
        '[service.b]\nplugin = "echo"\n',
        '2:1: defaults.listn: unknown key (did you mean "listen"?)',
    ),
    "an entry without a name": (
        ECHO.format("a").replace("service.a", "service"),
        "1:2: service: expected a table with the name of the service, such as [service.echo]",
    ),
    "tcpmux misspelled": (
        BY_TCPMUX + ECHO.format("m").replace("echo", "tcpmx"),
        '5:10: service.m.plugin: there is no plugin "tcpmx" (did you mean "tcpmux"?)',
    ),
    "tcpmux in an entry that cannot be read": (
        BY_TCPMUX + "[service.m]\nlisten = 'unix://@x'\n",
        "4:10: service.m.plugin: is missing (name of an installed plugin)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES)
def test_one_cause_is_one_line(tmp_path: Path, superd_here: Say, cause: str) -> None:
    text, expected = CAUSES[cause]
    done = superd_here("check", str(written(tmp_path, text)))
    [line] = done.stderr.splitlines()
    assert line.partition("superd.toml:")[2].startswith(expected)
    assert done.returncode == 78


def test_two_causes_in_one_entry_are_two_lines(tmp_path: Path, superd_here: Say) -> None:
    done = superd_here("check", str(written(tmp_path, FORWARD + "nice = 50\n")))
    assert [line.partition("superd.toml:")[2] for line in done.stderr.splitlines()] == [
        "1:10: service.w.options.to: is missing (one target or several: a string, or a table with"
        " address and weight)",
        "4:8: service.w.nice: expected an integer of at most 19, found 50",
    ]
