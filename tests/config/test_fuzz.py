"""Damaged configurations: any file loads or has readable problems, within a second."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from superd_message import MessageOptions
from superd_qotd import QotdOptions

from superd.config.loading import load
from superd.config.positions import Path as KeyPath
from superd.config.problems import Document, problems_of
from superd.errors import ConfigurationError, Problem
from superd.plugin import Options
from tests.config.configurations import written

LOADING_TIME_LIMIT = 1  # second of processor time
MODELS: dict[str, type[Options]] = {"message": MessageOptions, "qotd": QotdOptions}

# It has no host names: a damaged one would be looked up at a name server.
VALID = """\
# tables, arrays and strings of each kind
[daemon]
workers = 2
pid-file = "run/pid"
control-socket = '/run/superd/control.sock'
log = ["stderr", "logs/superd.log"]
log-format = "json"
drain-timeout = "1m30s"
include = ["superd.d/*.toml"]
confinement = "auto"

[defaults]
user = "root"
groups = [0, "root"]
idle-timeout = "5m"
rlimits = { nofile = 1024, core = 0, memory = "1GiB", cpu = "2h" }

[service.echo]
plugin = "echo"
listen = [
    "tcp://[::1]:7007", # the first
    "udp://[::1]:7007-7010", "unix:///run/echo.sock?mode=0660&user=root",
    'unixgram://@echo',
]
backlog = 128
umask = "077"

[service."quoted.name"]
plugin = "message"
listen = "unix:///run/message"
options = { first = \"\"\"
two lines
of text\"\"\" }
nice = -5

[service.qotd]
plugin = "qotd"
listen = "tcp://[::1]:7017"
enabled = false
amplify = true
options.quotes = "quotes"
rlimits.file-size = "10MiB"
"""

PIECES = (
    "[", "]", "[[", "]]", "{", "}", '"', "'", '\"\"\"', "'''", ",", ".", "=", "#", "\n", "\r\n",
    "\t", " ", "\\", "\0", "\x7f", "\u202e", "\ufeff", "ä", "-", "+", "_", ":", "/", "%", "?", "~",
    "*", "0", "-1", "70000", "1e999", "nan", "-inf", "0x", "0b1", "9" * 30, "1979-05-27",
    "07:32:00", "true", "false", "[service.x]", "[daemon]", "[defaults]\n", "{ a = 1 }",
    "[[service.echo]]", "listen = 1\n", "options", "rlimits",
    '\\u0000', '\\"', "[" * 9, "a.b.c.d.e.f.g.h.i = 1",
)  # fmt: skip


def damaged(text: str, rng: random.Random) -> bytes:
    """Return a text with some slices deleted, repeated, moved or replaced, or a bit inverted."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(text) + 1)
        end = min(len(text), at + rng.choice((0, 1, 1, 2, 5, 20, 200)))
        choice = rng.randrange(6)
        if choice == 0:
            text = text[:at] + text[end:]
        elif choice == 1:
            text = text[:at] + text[at:end] * rng.choice((2, 3, 50)) + text[end:]
        elif choice == 2:
            to = rng.randrange(len(text) + 1)
            text = text[:to] + text[at:end] + text[to:]
        elif choice == 3:
            text = text[:at] + rng.choice(PIECES) + text[end:]
        elif choice == 4:
            lines = text.split("\n")
            rng.shuffle(lines)
            text = "\n".join(lines) if rng.random() < 0.1 else text
        else:
            text = text[:at] + rng.choice(PIECES) + text[at:]
    raw = text.encode()
    if raw and rng.random() < 0.1:
        at = rng.randrange(len(raw))
        raw = raw[:at] + bytes((raw[at] ^ 1 << rng.randrange(8),)) + raw[at + 1 :]
    return raw


def problems_in(file: Path) -> list[Problem]:
    """Return the problems of a file, with those of the options of its services."""
    try:
        configuration = load(file)
    except ConfigurationError as error:
        return list(error.problems)
    found = list(configuration.problems)
    context = {"directory": file.parent}
    for name, service in configuration.partial.services.items():
        model = MODELS.get(service.plugin, Options)

        def locate(path: KeyPath, name: str = name) -> tuple[Document, KeyPath]:
            return configuration.locate(name, ("options", *path))

        try:
            model.model_validate(service.options, context=context)
        except ValidationError as error:
            found += problems_of(error, model, service.options, locate)
    return found


def check_damaged_files(directory: Path, count: int, seed: int) -> tuple[int, int]:
    """Load damaged files; return how many were accepted and how many rejected."""
    rng = random.Random(seed)
    written(directory, "one", "quotes")
    written(directory, '[service.more]\nplugin = "time"\nlisten = "unix://@m"', "superd.d/m.toml")
    accepted = rejected = 0
    for _ in range(count):
        raw = damaged(VALID, rng)
        file = written(directory, raw)
        before = time.process_time()
        problems = problems_in(file)
        assert time.process_time() - before < LOADING_TIME_LIMIT, raw
        lines = raw.count(b"\n") + 1
        for problem in problems:
            assert str(problem).isprintable(), raw
            assert len(str(problem)) < 1000, raw
            if problem.file == str(file):
                assert 0 < problem.line <= lines, (raw, problem)
                assert problem.column > 0, (raw, problem)
        accepted, rejected = (accepted, rejected + 1) if problems else (accepted + 1, rejected)
    return accepted, rejected


def test_the_original_configuration_is_valid(tmp_path: Path) -> None:
    written(tmp_path, "one", "quotes")
    assert load(written(tmp_path, VALID)).problems == ()


def test_a_damaged_file_loads_or_has_readable_problems_within_a_second(tmp_path: Path) -> None:
    accepted, rejected = check_damaged_files(tmp_path, 1000, seed=1)
    assert accepted > 20
    assert rejected > 500


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
def test_very_many_damaged_files_load_or_have_readable_problems(tmp_path: Path, seed: int) -> None:
    accepted, rejected = check_damaged_files(tmp_path, 10_000, seed)
    assert accepted + rejected == 10_000
