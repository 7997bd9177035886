"""The types of values in a configuration: durations, sizes, addresses, users.

Runs wherever a configuration is read. Never keeps state. Raises ValueError with a text that names
what was expected; pydantic turns it into a problem with a position.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
)
from pydantic import WithJsonSchema as JsonSchema
from pydantic_core import InitErrorDetails, PydanticCustomError

from superd.config.durations import DURATION
from superd.config.durations import duration_text as duration_text
from superd.config.durations import parse_duration as parse_duration
from superd.errors import shown
from superd.net.accounts import Kind, UnknownAccount, id_of
from superd.net.addresses import (
    MAX_ADDRESSES,
    MAX_ID,
    MAX_UNIX_PATH_BYTES,
    Address,
    Transport,
    parse_addresses,
)

_SIZE_UNITS = {
    "": 1, "B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30,
}  # fmt: skip
_RATE_UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "hour": 3600}

_SIZE = rf"([0-9]{{1,15}}) ?({'|'.join(_SIZE_UNITS)})"
_RATE = rf"([0-9]{{1,9}})/({'|'.join(_RATE_UNITS)})"
_UMASK = r"0?[0-7]{3}"

LOG_SINKS = ("stderr", "syslog", "journal")
LARGEST_SIZE = (1 << 63) - 1  # bytes: the limit of setrlimit(2)


def parse_size(value: object) -> int:
    """Return the bytes of 4096, "64KiB" or "1MB"."""
    size = -1
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := re.fullmatch(_SIZE, value)):
        size = int(match[1]) * _SIZE_UNITS[match[2]]
    if size > LARGEST_SIZE:
        raise ValueError("expected a size of less than 2^63 bytes")
    if size < 0:
        raise ValueError('expected a size such as 4096, "64KiB", "10MiB" or "1GB"')
    return size


def parse_rate(value: object) -> float:
    """Return the events per second of "50/s" or "100/min"; the number 0 means no limit."""
    if value == 0 and not isinstance(value, bool):
        return 0.0
    if isinstance(value, str) and (match := re.fullmatch(_RATE, value)):
        return int(match[1]) / _RATE_UNITS[match[2]]
    raise ValueError('expected a rate such as "50/s", "100/min" or "1000/h"')


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that is most similar, or "" if none is similar."""
    from difflib import get_close_matches  # imported late: most configurations have no error

    return next(iter(get_close_matches(word, list(known), n=1, cutoff=0.6)), "")


def did_you_mean(word: str, known: list[str]) -> str:
    """Return ` (did you mean "x"?)`, or "" if no known word is similar."""
    near = nearest(word, known)
    return f" (did you mean {shown(near)}?)" if near else ""


def _user(value: object) -> int:
    return _identity(value, "user", _user_names)


def _group(value: object) -> int:
    return _identity(value, "group", _group_names)


def _user_names() -> list[str]:
    return [entry.pw_name for entry in pwd.getpwall()]


def _group_names() -> list[str]:
    return [entry.gr_name for entry in grp.getgrall()]


def _identity(value: object, kind: Kind, names: Callable[[], list[str]]) -> int:
    """Return the number of a user or a group."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID:
        return value
    if not isinstance(value, str):
        raise ValueError(f"expected a {kind}'s name, or a number from 0 to {MAX_ID}")
    try:
        return id_of(value, kind)
    except UnknownAccount as error:
        raise ValueError(f"{error}{did_you_mean(value, names())}") from None


def _umask(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(_UMASK, value):
        return int(value, 8)
    raise ValueError('expected a umask, which is a string in octal, such as "077"')


def _addresses(value: object) -> tuple[Address, ...]:
    """Return the addresses of a string or an array; each error has its own position."""
    found: list[Address] = []
    mistakes: list[InitErrorDetails] = []
    texts = value if isinstance(value, (list, tuple)) else (value,)
    for number, text in enumerate(texts):
        try:
            if not isinstance(text, str):
                raise ValueError('expected an address such as "tcp://127.0.0.1:7"')
            found += parse_addresses(text)
            if len(found) > MAX_ADDRESSES:
                raise ValueError(f"a service listens on at most {MAX_ADDRESSES} addresses")
        except ValueError as error:
            kind = PydanticCustomError("address", "{error}", {"error": error})
            place = (number,) if texts is value else ()
            mistakes.append(InitErrorDetails(type=kind, loc=place, input=text))
            if len(found) > MAX_ADDRESSES:
                break
    if mistakes:
        raise ValidationError.from_exception_data("listen", mistakes)
    if not found:
        raise ValueError("expected at least one address")
    return tuple(found)


def listed(value: object) -> tuple[Any, ...]:
    """Return the elements of an array, or a single value as one."""
    if isinstance(value, (list, tuple)):
        return tuple(value)
    return (value,)


def _log_sink(name: str) -> str:
    """Reject a word that is neither a sink nor looks like a path: it is probably a typo."""
    if name not in LOG_SINKS and not re.search(r"[/.]", name):
        known = ", ".join(map(shown, LOG_SINKS))
        hint = did_you_mean(name, list(LOG_SINKS))
        raise ValueError(f"expected {known} or a file's path, found {shown(name)}{hint}")
    return name


def parse_path(value: object, info: ValidationInfo) -> Path:
    """Return an absolute path; a relative one is relative to the configuration's directory."""
    if not isinstance(value, (str, Path)) or not str(value) or "\0" in str(value):
        raise ValueError("expected a path")
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        raise ValueError("there is no such home directory") from None
    return Path((info.context or {}).get("directory", ""), path)


def check_readable(path: Path) -> Path:
    """Check that a file can be read. It is opened without blocking, because it may be a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        os.close(descriptor)
    except OSError as error:
        words = os.strerror(error.errno or 0)
        raise ValueError(f'cannot read "{path}": {words}') from None
    if not is_file:
        raise ValueError(f'cannot read "{path}": it is not a regular file')
    return path


def _socket_path(path: Path) -> Path:
    if len(os.fsencode(path)) > MAX_UNIX_PATH_BYTES:
        raise ValueError(
            f"the path of a unix socket has at most {MAX_UNIX_PATH_BYTES} bytes (unix(7))"
        )
    return path


def _positive(seconds: float) -> float:
    if not seconds:
        raise ValueError("expected a duration of more than 0")
    return seconds


_STRING: dict[str, Any] = {"type": "string"}
_INTEGER: dict[str, Any] = {"type": "integer", "minimum": 0}
_ADDRESS = {**_STRING, "pattern": f"^({'|'.join(t.value for t in Transport)})://."}


def _matching(pattern: str, *examples: str) -> dict[str, Any]:
    return {**_STRING, "pattern": f"^(?:{pattern})$", "examples": list(examples)}


def one_or_more(one: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a value, or an array of them."""
    return {"anyOf": [one, {"type": "array", "items": one}]}


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(duration_text, when_used="json"),
    JsonSchema({"anyOf": [_matching(DURATION, "30s", "1h30m"), {"const": 0}]}),
]
PositiveDuration = Annotated[
    float,
    BeforeValidator(parse_duration),
    AfterValidator(_positive),
    PlainSerializer(duration_text, when_used="json"),
    JsonSchema(_matching(DURATION, "30s", "1h30m")),
]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    JsonSchema({"anyOf": [_INTEGER, _matching(_SIZE, "64KiB")]}),
]
Rate = Annotated[
    float,
    BeforeValidator(parse_rate),
    JsonSchema({"anyOf": [_matching(_RATE, "50/s", "100/min"), {"const": 0}]}),
]
User = Annotated[int, BeforeValidator(_user), JsonSchema({"anyOf": [_STRING, _INTEGER]})]
Group = Annotated[int, BeforeValidator(_group), JsonSchema({"anyOf": [_STRING, _INTEGER]})]
Umask = Annotated[
    int,
    BeforeValidator(_umask),
    PlainSerializer(lambda mask: f"{mask:03o}", when_used="json"),
    JsonSchema(_matching(_UMASK, "077")),
]
Addresses = Annotated[
    tuple[Address, ...], BeforeValidator(_addresses), JsonSchema(one_or_more(_ADDRESS))
]
Strings = Annotated[tuple[str, ...], BeforeValidator(listed), JsonSchema(one_or_more(_STRING))]
Groups = Annotated[
    tuple[Group, ...],
    BeforeValidator(listed),
    JsonSchema(one_or_more({"anyOf": [_STRING, _INTEGER]})),
]
LogSinks = Annotated[
    tuple[Annotated[str, AfterValidator(_log_sink)], ...],
    BeforeValidator(listed),
    JsonSchema(one_or_more(_STRING)),
]
FilePath = Annotated[Path, BeforeValidator(parse_path), JsonSchema(_STRING)]
SocketPath = Annotated[FilePath, AfterValidator(_socket_path)]
ReadableFile = Annotated[
    Path, BeforeValidator(parse_path), AfterValidator(check_readable), JsonSchema(_STRING)
]
