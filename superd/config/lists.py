"""The values of `allow`, `deny`, their files, `access-times`, and other lists.

Runs wherever a configuration is read. A list file is read with the configuration, and again at each
reload. Refuses a list file that others can write when superd runs as root. Raises ValueError with a
text that names file and line.
"""

from __future__ import annotations

import os
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer, PlainValidator, ValidationInfo
from pydantic import WithJsonSchema as JsonSchema

from superd.config.permissions import file_problem
from superd.config.values import check_readable, did_you_mean, listed, one_or_more, parse_path
from superd.config.windows import Window, parse_window
from superd.errors import shown
from superd.net.patterns import IPNetwork, Pattern, parse_network, parse_pattern

LARGEST_LIST = 16 << 20  # bytes
MAX_REPORTED_ERRORS = 20  # of one file


@dataclass(frozen=True)
class ListFile:
    """A file with one pattern per line, and its line numbers. `#` starts a comment."""

    path: Path
    entries: tuple[tuple[int, Pattern], ...]


def _pattern(value: object) -> Pattern:
    if not isinstance(value, str):
        raise ValueError('expected an address, a network or a name, such as "192.0.2.0/24"')
    return parse_pattern(value)


def _network(value: object) -> IPNetwork:
    if not isinstance(value, str):
        raise ValueError('expected an address or a network, such as "192.0.2.0/24"')
    return parse_network(value)


def _window(value: object) -> Window:
    if not isinstance(value, str):
        raise ValueError('expected days and hours, such as "mon-fri 08:00-18:00"')
    return parse_window(value)


def _list_file(value: object, info: ValidationInfo) -> ListFile:
    path = check_readable(parse_path(value, info))
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size > LARGEST_LIST:
            raise ValueError(f'"{path}" is longer than {LARGEST_LIST >> 20} MiB')
        if mistake := file_problem(path, status):
            raise ValueError(f'"{path}" {mistake}')
        data = file.read(LARGEST_LIST)
    entries: list[tuple[int, Pattern]] = []
    mistakes: list[str] = []
    for number, text in _lines(data):
        try:
            entries.append((number, parse_pattern(text)))
        except ValueError as error:
            mistakes.append(f"{path}:{number}: {error}")
    if mistakes:
        more = len(mistakes) - MAX_REPORTED_ERRORS
        told = "; ".join(mistakes[:MAX_REPORTED_ERRORS])
        raise ValueError(f"{told}; and {more} more" if more > 0 else told)
    return ListFile(path, tuple(entries))


def _lines(data: bytes) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(data.decode(errors="backslashreplace").split("\n"), 1):
        if text := line.partition("#")[0].strip():
            yield number, text


def _time_zone(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError('expected a time zone, such as "Europe/Berlin"')
    try:
        if value:
            zoneinfo.ZoneInfo(value)
    except (OSError, ValueError, zoneinfo.ZoneInfoNotFoundError):
        hint = did_you_mean(value, sorted(zoneinfo.available_timezones()))
        raise ValueError(f"there is no time zone {shown(value)}{hint}") from None
    return value


_STRING: dict[str, Any] = {"type": "string"}
_PATTERN = {**_STRING, "examples": ["192.0.2.0/24", "2001:db8::1", ".example.com", "*"]}
_WINDOW = {**_STRING, "examples": ["mon-fri 08:00-18:00", "22:00-06:00"]}

Patterns = Annotated[
    tuple[Annotated[Pattern, PlainValidator(_pattern), PlainSerializer(str)], ...],
    BeforeValidator(listed),
    JsonSchema(one_or_more(_PATTERN)),
]
ListFiles = Annotated[
    tuple[
        Annotated[ListFile, PlainValidator(_list_file), PlainSerializer(lambda f: str(f.path))], ...
    ],
    BeforeValidator(listed),
    JsonSchema(one_or_more(_STRING)),
]
Networks = Annotated[
    tuple[Annotated[IPNetwork, PlainValidator(_network), PlainSerializer(str)], ...],
    BeforeValidator(listed),
    JsonSchema(one_or_more({**_STRING, "examples": ["192.0.2.0/24", "2001:db8::1"]})),
]
Windows = Annotated[
    tuple[Annotated[Window, PlainValidator(_window), PlainSerializer(str)], ...],
    BeforeValidator(listed),
    JsonSchema(one_or_more(_WINDOW)),
]
Events = Annotated[
    tuple[Literal["accepted", "closed", "refused", "noted"], ...],
    BeforeValidator(listed),
    JsonSchema(one_or_more({"enum": ["accepted", "closed", "refused", "noted"]})),
]
TimeZone = Annotated[str, BeforeValidator(_time_zone), JsonSchema(_STRING)]
