"""The JSON Schema of a table of the configuration, for editors.

Runs in the command line. Handles the differences between TOML and JSON. Never raises for a model
that has been used.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import to_jsonable_python
from pydantic_core.core_schema import NullableSchema, WithDefaultSchema


class _TomlSchema(GenerateJsonSchema):
    """Omits null, which TOML does not have, and titles, which only repeat the keys.

    A default has the form in which an operator writes it.
    """

    def nullable_schema(self, schema: NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"])
        default = schema.get("default")
        if default is None:
            return inner
        writer = schema["schema"].get("serialization", {})
        if writer.get("type") == "function-plain":
            default = writer["function"](default)
        elif isinstance(default, BaseModel):
            default = default.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return {**inner, "default": to_jsonable_python(default)}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema_of(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Return the schema of a table; `prefix` makes the names of its definitions unique."""
    template = f"#/$defs/{prefix}{{model}}"
    schema = model.model_json_schema(ref_template=template, schema_generator=_TomlSchema)
    if definitions := schema.pop("$defs", {}):
        schema["$defs"] = {prefix + name: table for name, table in definitions.items()}
    return schema
