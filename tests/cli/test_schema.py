"""`superd schema`: an editor accepts the same configurations as superd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli
from pydantic import BaseModel

from superd.cli.schema import configuration_schema
from superd.config.model import Daemon, Rlimits, Service
from superd.plugin.registry import installed
from tests.cli.conftest import Install
from tests.cli.test_plugins import WITH_OPTIONS
from tests.support.harness import superd

CONF = Path(__file__).parent.parent.parent / "conf"


@pytest.fixture(scope="module")
def schema() -> Any:
    done = superd("schema")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def mistakes(schema: Any, text: str) -> list[str]:
    """Return the places where a document violates the schema."""
    validator = jsonschema.Draft202012Validator(schema)
    found = validator.iter_errors(tomli.loads(text))
    return sorted(".".join(map(str, error.absolute_path)) for error in found)


def test_the_schema_is_valid(schema: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("file", sorted(CONF.glob("*.toml")), ids=lambda file: file.name)
def test_every_file_in_conf_is_valid(schema: Any, file: Path) -> None:
    assert mistakes(schema, file.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        '[defaults]\nplugin = "echo"\n[service.a]\nlisten = "tcp://[::1]:7"',
        '[defaults]\nlisten = ["tcp://[::1]:7"]\n[service.a]\nplugin = "echo"',
        '[daemon]\nworkers = "auto"\ndrain-timeout = 0\nlog = ["stderr", "/var/log/superd"]',
        "[defaults]\nuser = 1000\ngroup = 'root'\ngroups = ['root', 5]\numask = '027'",
        "[defaults.rlimits]\nnofile = 100\nmemory = '1GiB'\ncore = 0\ncpu = '1h30m'",
        '[service.q]\nplugin = "qotd"\nlisten = "tcp://*:17"\noptions = { quotes = "q" }',
    ],
)
def test_the_schema_accepts_what_superd_accepts(schema: Any, text: str) -> None:
    assert mistakes(schema, text) == []


ENTRY = '[service.a]\nplugin = "echo"\nlisten = "tcp://[::1]:7"\n'


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("x = 1", ""),
        ("[deamon]", ""),
        ("[daemon]\nworkers = 0", "daemon.workers"),
        ('[daemon]\nworkers = "many"', "daemon.workers"),
        ('[daemon]\ndrain-timeout = "soon"', "daemon.drain-timeout"),
        ("[daemon]\ndrain_timeout = 0", "daemon"),
        ('[daemon]\nlog-format = "xml"', "daemon.log-format"),
        ("[defaults]\nnice = 20", "defaults.nice"),
        ("[defaults]\nrlimits.nofile = 3", "defaults.rlimits.nofile"),
        ("[defaults]\nrlimits.cup = '1s'", "defaults.rlimits"),
        ("[defaults]\numask = '99'", "defaults.umask"),
        ('[service.a]\nplugin = "echo"', "service.a"),
        ('[service.a]\nlisten = "tcp://[::1]:7"', "service.a"),
        (f'{ENTRY}user = ""\nlisen = 1', "service.a"),
        (ENTRY.replace("tcp:", "tpc:"), "service.a.listen"),
        (ENTRY.replace('"echo"', '"ecco"'), "service.a.plugin"),
        (f"{ENTRY}enabled = 1", "service.a.enabled"),
        (f"{ENTRY}options = {{ colour = 1 }}", "service.a.options"),
        (f"{ENTRY.replace('echo', 'qotd')}options = {{ quotes = 1 }}", "service.a.options.quotes"),
    ],
)
def test_the_schema_refuses_what_superd_refuses(schema: Any, text: str, place: str) -> None:
    assert mistakes(schema, text) == [place]


def test_every_key_has_a_description_and_its_default_in_toml(schema: Any) -> None:
    tables = schema["properties"]
    service = tables["service"]["additionalProperties"]["properties"]
    described: list[tuple[type[BaseModel], dict[str, Any]]] = [
        (Daemon, tables["daemon"]["properties"]),
        (Service, service),
        (Service, tables["defaults"]["properties"]),
        (Rlimits, schema["$defs"]["Rlimits"]["properties"]),
    ]
    for model, keys in described:
        assert list(keys) == [field.alias for field in model.model_fields.values()]
        assert all(key["description"] for key in keys.values())
    assert service["umask"]["default"] == "077"
    assert service["idle-timeout"]["default"] == "0s"
    assert tables["daemon"]["properties"]["drain-timeout"]["default"] == "30s"
    assert "null" not in json.dumps(schema)


def test_the_schema_has_the_options_of_every_working_plugin(schema: Any, install: Install) -> None:
    install("greedy", WITH_OPTIONS)
    install("dies", "import os; os.abort()")
    here = configuration_schema(installed())
    jsonschema.Draft202012Validator.check_schema(here)
    entry = '[service.a]\nplugin = "greedy"\nlisten = "tcp://[::1]:7"\n[service.a.options]\n'
    options = 'command = ["a"]\nhow = "fast"\nmany = 5\nto = ""\nevery = "1s"\n'
    assert mistakes(here, entry + options + 'inner.host = "b"') == []
    assert mistakes(here, entry + options + "inner.host = 1") == ["service.a.options.inner.host"]
    assert mistakes(here, entry + options.replace("5", "10")) == ["service.a.options.many"]
    assert mistakes(here, entry.replace("greedy", "dies")) == []
    assert mistakes(schema, entry.replace("greedy", "dies")) == ["service.a.plugin"]
