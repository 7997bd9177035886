"""The table of commands: each names a function that takes just the arguments that it parses."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import pytest

from superd.cli.commands import COMMANDS, Command
from superd.cli.main import parser
from tests.support.harness import superd

POSITIONAL = {
    "kill": ["1-1"], "disable": ["echo"], "enable": ["echo"], "ban": ["192.0.2.1"],
    "unban": ["192.0.2.1"], "explain": ["echo", "192.0.2.1"], "migrate": ["inetd", "FILE"],
    "try": ["echo"], "connect": ["HOST:7"], "clock": ["HOST"], "message": ["HOST:7", "hello"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_function_of_a_command_takes_its_arguments(command: Command) -> None:
    arguments = vars(parser().parse_args([command.name, *POSITIONAL.get(command.name, [])]))
    assert arguments.pop("command") is command
    module, _, name = command.function.partition(":")
    function = getattr(import_module(f"superd.{module}"), name)
    inspect.signature(function).bind(**arguments)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_takes_the_file_by_the_same_option(command: Command) -> None:
    if any("--config" in argument.names for argument in command.arguments):
        more = POSITIONAL.get(command.name, [])
        assert parser().parse_args([command.name, "-c", "my.toml", *more]).file == Path("my.toml")


@pytest.mark.parametrize("name", ["start", "stop", "reload"])
def test_wait_is_not_an_option(name: str) -> None:
    done = superd(name, "--wait")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("superd: error: unrecognized arguments: --wait\n")
