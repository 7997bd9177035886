"""Turns what pydantic found into problems that name file, line, column, key, value and remedy.

Runs wherever a configuration is read. Never raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ValidationError

from superd.config.positions import Path, Place, Position
from superd.config.values import did_you_mean
from superd.errors import Problem

_START = Position(1, 1)


class Document:
    """One file of a configuration: its name, its keys' places and the problems found in it."""

    def __init__(self, name: str, places: dict[Path, Place], data: dict[str, Any]) -> None:
        self.name = name
        self.places = places
        self.data = data

    def problem(self, path: Path, message: str, *, at_key: bool = False) -> Problem:
        """Return a problem with the value at `path`, or with the nearest key above it."""
        place = next(
            (self.places[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.places),
            Place(_START, _START),
        )
        position = place.key if at_key else place.value
        return Problem(self.name, position.line, position.column, dotted(path), message)


def dotted(path: Path) -> str:
    """Return a path as an operator writes it: `service.web.listen[1]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def shown(value: object) -> str:
    """Return a value for a message: as short as can be, and never with a control character."""
    if isinstance(value, str):
        text = '"' + value.encode("unicode_escape").decode() + '"'
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, (dict, list)):
        text = "a table" if isinstance(value, dict) else "an array"
    else:
        text = str(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."


def problems_of(
    error: ValidationError,
    model: type[BaseModel],
    locate: Callable[[Path], tuple[Document, Path]],
) -> list[Problem]:
    """Return one problem for each of pydantic's errors.

    `locate` tells in which document, and under which path there, a path of the model stands.
    """
    found = []
    for detail in error.errors(include_url=False):
        path = _without_branches(detail["loc"])
        document, place = locate(path)
        kind, value = detail["type"], detail["input"]
        if kind == "extra_forbidden":
            known = sorted(_keys_at(model, path[:-1]))
            message = f"unknown key{did_you_mean(str(path[-1]), known)}"
        elif kind == "missing":
            message = "is missing"
        else:
            text = str(detail.get("ctx", {}).get("error", "")) or detail["msg"]
            message = f"{_in_toml_words(text)}, found {shown(value)}"
            if kind == "literal_error":
                message += did_you_mean(str(value), str(detail["ctx"]["expected"]).split("'"))
        at_key = kind in ("extra_forbidden", "missing")
        found.append(document.problem(place, message, at_key=at_key))
    return found


_BRANCHES = ("function-", "int", "literal[", "constrained-")


def _without_branches(location: tuple[int | str, ...]) -> Path:
    """Drop the names that pydantic adds for the branches of a union."""
    return tuple(p for p in location if isinstance(p, int) or not p.startswith(_BRANCHES))


def _keys_at(model: type[BaseModel], path: Path) -> set[str]:
    for part in path:
        field = next((f for f in model.model_fields.values() if f.alias == part), None)
        inner = field.annotation if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return set()
        model = inner
    return {field.alias or name for name, field in model.model_fields.items()}


def _in_toml_words(message: str) -> str:
    words = message.removeprefix("Input should be ").removeprefix("Value error, ")
    for python, toml in (("a valid dictionary", "a table"), ("a valid ", "a ")):
        words = words.replace(python, toml)
    return words if words == message else f"expected {words}"
