"""Turns pydantic's errors into problems that name file, line, column, key, value and remedy.

Runs wherever a configuration is read. The texts name the types of TOML, never those of Python or
pydantic. Never raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from superd.config.positions import Path, Places
from superd.config.values import did_you_mean, nearest
from superd.errors import Problem, TemporaryFailure, shown


class Document:
    """One file of a configuration: its name, text and data, and the positions of its keys."""

    def __init__(self, name: str, text: str, places: Places, data: dict[str, Any]) -> None:
        self.name = name
        self.text = text
        self.places = places
        self.data = data

    def problem(self, path: Path, message: str, *, at_key: bool = False) -> Problem:
        """Return a problem with the value at `path`, or with its nearest ancestor."""
        place = self.places.nearest(path)
        line, column = place.key if at_key else place.value
        return Problem(self.name, line, column, dotted(path), message)


Locate = Callable[[Path], tuple[Document, Path]]


def dotted(path: Path) -> str:
    """Return a path in the form `service.web.listen[1]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f".{shown(part)}"
    return text.removeprefix(".")


@dataclass(frozen=True)
class _Finding:
    """One of pydantic's errors. `union` is the path at which a union branches, if any."""

    path: Path
    union: Path | None
    detail: ErrorDetails


def problems_of(
    error: ValidationError,
    model: type[BaseModel],
    data: object,
    locate: Locate,
    misplaced: Iterable[str] = (),
) -> list[Problem]:
    """Return the problems that `model` has with `data`.

    `locate` returns the document of a path of the model, and the path in that document. A key that
    is `misplaced`, or misspelled, is not reported as missing, too.
    """
    problems = []
    all_findings = [_finding(detail, data) for detail in error.errors(include_url=False)]
    explained: set[Path] = {(key,) for key in misplaced}
    explained |= {
        (*one.path[:-1], nearest(str(one.path[-1]), sorted(_fields_at(model, one.path[:-1]))))
        for one in all_findings
        if one.detail["type"] == "extra_forbidden"
    }
    for findings in _one_place_each(all_findings):
        first = findings[0]
        if first.detail["type"] == "missing" and first.path in explained:
            continue
        document, path = locate(first.path)
        kind = first.detail["type"]
        at_key = kind in ("extra_forbidden", "missing")
        message = (
            _about_the_key(first, model)
            if at_key
            else _about_the_value([finding.detail for finding in findings])
        )
        problem = document.problem(path, message, at_key=at_key)
        is_temporary = isinstance(first.detail.get("ctx", {}).get("error"), TemporaryFailure)
        problems.append(replace(problem, is_temporary=is_temporary))
    return problems


def _finding(detail: ErrorDetails, data: Any) -> _Finding:
    """Remove names of validators and branches, which are not in the data, from a location."""
    location, missing = detail["loc"], detail["type"] == "missing"
    path: Path = ()
    union: Path | None = None
    for part in location[:-1] if missing else location:
        if _holds(data, part):
            data, path = data[part], (*path, part)
        elif union is None:
            union = path
    return _Finding((*path, location[-1]) if missing else path, union, detail)


def _holds(data: object, part: int | str) -> bool:
    if isinstance(data, dict):
        return part in data
    return isinstance(data, list) and isinstance(part, int) and part < len(data)


def _one_place_each(findings: Iterable[_Finding]) -> Iterator[list[_Finding]]:
    """Group the errors of all branches of a union for one value.

    If a branch found its error deeper in the value than others, the value was meant for it.
    """
    unions: dict[Path, list[_Finding]] = {}
    for finding in findings:
        if finding.union is None:
            yield [finding]
        else:
            unions.setdefault(finding.union, []).append(finding)
    for union, group in unions.items():
        deeper = [finding for finding in group if finding.path != union]
        if deeper:
            yield from ([finding] for finding in deeper)
        else:
            yield group


def _about_the_key(finding: _Finding, model: type[BaseModel]) -> str:
    fields = _fields_at(model, finding.path[:-1])
    key = str(finding.path[-1])
    if finding.detail["type"] == "extra_forbidden":
        hint = did_you_mean(key, sorted(fields))
        if not hint and "options" in fields:
            hint = f"; an option of the plugin belongs in options = {{ {dotted((key,))} = ... }}"
        return f"unknown key{hint}"
    description = fields[key].description if key in fields else None
    return f"is missing ({description})" if description else "is missing"


def _fields_at(model: type[BaseModel], path: Path) -> dict[str, FieldInfo]:
    """Return the fields of all models that may stand at `path`, by their keys."""
    fields = _fields([model])
    for part in path:
        if part in fields:
            fields = _fields(_models_in(fields[str(part)].annotation))
    return fields


def _fields(models: Iterable[type[BaseModel]]) -> dict[str, FieldInfo]:
    found = (model.model_fields.items() for model in models)
    return {field.alias or name: field for items in found for name, field in items}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _about_the_value(details: list[ErrorDetails]) -> str:
    texts = list(dict.fromkeys(_wanted(detail) for detail in details))
    if len(texts) > 1:
        texts = ["expected " + " or ".join(text.removeprefix("expected ") for text in texts)]
    message, value = texts[0], details[0]["input"]
    if not isinstance(value, str) or shown(value) not in message:
        message += f", found {shown(value)}"
    if isinstance(value, str):
        words = [
            word for detail in details for word in re.findall(r"'([^']*)'", _choice(detail) or "")
        ]
        message += did_you_mean(value, words)
    return message


_WANTED = {
    "int": "an integer",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "a string",
    "bytes": "a string",
    "path": "a path",
    "ip_v4_address": "an IPv4 address",
    "ip_v6_address": "an IPv6 address",
    "ip_v4_network": "an IPv4 network",
    "ip_v6_network": "an IPv6 network",
    "dict": "a table",
    "mapping": "a table",
    "model": "a table",
    "model_attributes": "a table",
    "dataclass": "a table",
    "list": "an array",
    "tuple": "an array",
    "set": "an array",
    "frozen_set": "an array",
    "date": "a date",
    "time": "a time",
    "datetime": "a date and time",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "of at least"),
    "greater_than": ("gt", "of more than"),
    "less_than_equal": ("le", "of at most"),
    "less_than": ("lt", "of less than"),
    "multiple_of": ("multiple_of", "that is a multiple of"),
}
_LENGTHS = {
    "string_too_short": ("a string", "min_length", "character"),
    "string_too_long": ("a string", "max_length", "character"),
    "too_short": ("an array", "min_length", "element"),
    "too_long": ("an array", "max_length", "element"),
}


def _wanted(detail: ErrorDetails) -> str:
    """Return what was expected, or the text of a validator."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        number = "an integer" if isinstance(context[bound], int) else "a number"
        if isinstance(detail["input"], str):
            number = "a value"  # with a unit
        return f"expected {number} {words} {context[bound]}"
    if kind in _LENGTHS:
        what, bound, unit = _LENGTHS[kind]
        if context.get("field_type") == "Dictionary":
            what, unit = "a table", "key"
        count, most = context[bound], "least" if bound == "min_length" else "most"
        return f"expected {what} of at {most} {count} {unit}{'' if count == 1 else 's'}"
    if choice := _choice(detail):
        return f"expected {choice}".replace("'", '"')
    if kind == "string_pattern_mismatch":
        return f"expected a string that matches {context['pattern']}"
    if "error" in context:
        return str(context["error"])
    noun = _WANTED.get(kind) or _WANTED.get(re.split(r"_(?:type|parsing|from)", kind)[0])
    if noun:
        return f"expected {noun}"
    words = detail["msg"].replace("Input should be ", "expected ", 1)
    return words[:1].lower() + words[1:]


def _choice(detail: ErrorDetails) -> str | None:
    """Return the words of an enumeration, each in single quotes."""
    if detail["type"] in ("literal_error", "enum"):
        return str(detail["ctx"]["expected"])
    return None
