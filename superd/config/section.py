"""A table of TOML as a frozen model: the base of all tables of a configuration, and of plugins'
options.

Runs wherever a configuration is read. Raises pydantic's ValidationError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _accept_toml_types(schema: Any, resolve: Callable[[CoreSchema], CoreSchema]) -> None:
    """Accept arrays as tuples and sets, and strings as paths, addresses and enumeration members.
    Everything else stays strict.
    """
    if isinstance(schema, list):
        for item in schema:
            _accept_toml_types(item, resolve)
    elif isinstance(schema, dict):
        if schema.get("type") == "definition-ref":
            schema = resolve(cast(CoreSchema, schema))
            if schema["type"] == "model":
                return  # it has been handled already, or it contains this one
        if schema.get("type") in ("tuple", "set", "frozenset", "enum", "lax-or-strict"):
            schema["strict"] = False
        for key, inner in schema.items():
            if key not in ("metadata", "default"):
                _accept_toml_types(inner, resolve)


class Section(BaseModel):
    """A table of the configuration. Keys have hyphens; an unknown key is an error."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", alias_generator=_kebab, defer_build=True
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _accept_toml_types(handler.resolve_ref_schema(schema), handler.resolve_ref_schema)
        return schema
