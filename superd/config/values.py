"""The kinds of value a configuration holds: durations, sizes, addresses, users.

Runs wherever a configuration is read. Never keeps state. Raises ValueError with a text that names
the remedy; pydantic turns it into a problem with a position.
"""

from __future__ import annotations

import grp
import math
import os
import pwd
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, ValidationInfo
from pydantic import WithJsonSchema as JsonSchema

from superd.net.addresses import Address, parse_addresses

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {
    "": 1, "B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30,
}  # fmt: skip
_RATE_UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "hour": 3600}


def parse_duration(value: object) -> float:
    """Return seconds from "30s", "1h30m", "250ms"; a bare 0 means none."""
    if value == 0 and not isinstance(value, bool):
        return 0.0
    if isinstance(value, str) and re.fullmatch(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|[smhd]))+", value):
        parts = re.findall(r"([0-9.]+)(ms|[smhd])", value)
        seconds = sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)
        if math.isfinite(seconds) and seconds <= 366 * 86400:
            return seconds
        raise ValueError("a duration is at most a year")
    raise ValueError('a duration is written "250ms", "30s", "5m", "1h30m" or "2d"')


def parse_size(value: object) -> int:
    """Return bytes from 4096, "64KiB" or "1MB"."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(r"([0-9]{1,15}) ?([A-Za-z]*)", value) if isinstance(value, str) else None
    if match and match[2] in _SIZE_UNITS:
        return int(match[1]) * _SIZE_UNITS[match[2]]
    raise ValueError('a size is written 4096, "64KiB", "10MiB" or "1GB"')


def parse_rate(value: object) -> float:
    """Return events a second from "50/s" or "100/min"."""
    match = re.fullmatch(r"([0-9]{1,9})/([a-z]+)", value) if isinstance(value, str) else None
    if match and match[2] in _RATE_UNITS:
        return int(match[1]) / _RATE_UNITS[match[2]]
    raise ValueError('a rate is written "50/s", "100/min" or "1000/h"')


def did_you_mean(word: str, known: list[str]) -> str:
    """Return ` (did you mean "x"?)`, or nothing where no known word is near."""
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    return f' (did you mean "{near[0]}"?)' if near else ""


def _user(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if not isinstance(value, str):
        raise ValueError("a user is a name or a number")
    try:
        return pwd.getpwnam(value).pw_uid
    except (KeyError, ValueError):
        names = [entry.pw_name for entry in pwd.getpwall()]
        raise ValueError(f"there is no such user{did_you_mean(value, names)}") from None


def _group(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if not isinstance(value, str):
        raise ValueError("a group is a name or a number")
    try:
        return grp.getgrnam(value).gr_gid
    except (KeyError, ValueError):
        names = [entry.gr_name for entry in grp.getgrall()]
        raise ValueError(f"there is no such group{did_you_mean(value, names)}") from None


def _umask(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"0?[0-7]{3}", value):
        return int(value, 8)
    raise ValueError('a umask is a string in octal, such as "077"')


def _addresses(value: object) -> tuple[Address, ...]:
    texts = value if isinstance(value, list) else [value]
    found: list[Address] = []
    for text in texts:
        if not isinstance(text, str):
            raise ValueError('an address is a string, such as "tcp://127.0.0.1:7"')
        found += parse_addresses(text)
    if not found:
        raise ValueError("a service listens on one address at least")
    return tuple(found)


def _listed(value: object) -> tuple[Any, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(value)
    return (value,)


def _readable(path: Path, info: ValidationInfo) -> Path:
    directory = (info.context or {}).get("directory", "")
    path = Path(directory, path.expanduser())
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        raise ValueError(f"cannot be read: {os.strerror(error.errno or 0)}: {path}") from None
    return path


def _absolute(path: Path, info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("directory", ""), path.expanduser())


def _path(value: object) -> Path:
    if not isinstance(value, (str, Path)) or not str(value) or "\0" in str(value):
        raise ValueError("expected a path")
    return Path(value)


_STRING: dict[str, Any] = {"type": "string"}
_STRINGS: dict[str, Any] = {"type": "array", "items": _STRING}
_INTEGER: dict[str, Any] = {"type": "integer", "minimum": 0}

Duration = Annotated[
    float, BeforeValidator(parse_duration), JsonSchema({**_STRING, "examples": ["30s", "1h30m"]})
]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    JsonSchema({"anyOf": [_INTEGER, {**_STRING, "examples": ["64KiB"]}]}),
]
Rate = Annotated[
    float, BeforeValidator(parse_rate), JsonSchema({**_STRING, "examples": ["50/s", "100/min"]})
]
User = Annotated[int, BeforeValidator(_user), JsonSchema({"anyOf": [_STRING, _INTEGER]})]
Group = Annotated[int, BeforeValidator(_group), JsonSchema({"anyOf": [_STRING, _INTEGER]})]
Umask = Annotated[int, BeforeValidator(_umask), JsonSchema({**_STRING, "examples": ["077"]})]
Addresses = Annotated[
    tuple[Address, ...],
    BeforeValidator(_addresses),
    PlainSerializer(lambda found: [str(address) for address in found]),
    JsonSchema({"anyOf": [_STRING, _STRINGS]}),
]
Strings = Annotated[
    tuple[str, ...], BeforeValidator(_listed), JsonSchema({"anyOf": [_STRING, _STRINGS]})
]
Groups = Annotated[tuple[Group, ...], BeforeValidator(_listed), JsonSchema({**_STRINGS})]
FilePath = Annotated[Path, BeforeValidator(_path), AfterValidator(_absolute), JsonSchema(_STRING)]
ReadableFile = Annotated[
    Path, BeforeValidator(_path), AfterValidator(_readable), JsonSchema(_STRING)
]
