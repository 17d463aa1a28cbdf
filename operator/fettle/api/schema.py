"""Structural OpenAPI schemas, as a CustomResourceDefinition wants them, from the pydantic models.

pydantic writes JSON Schema; Kubernetes takes a small, strict part of OpenAPI 3.0. What is translated here, and nothing else:
`$ref` is inlined, `X | None` is an optional X (nothing in this API means something by null), `int | str` is int-or-string,
`gt` is `minimum` with a boolean `exclusiveMinimum`, CEL rules come from `base.RULES`, and a keyword that is not known here raises.
`json_schema_extra` may say `x-map-keys` (a list that is a map), `x-set` (a list without doubles), `x-preserve` (fields
that the API server keeps unread) and `x-unfilled` (a default that is not filled in, because the field often does not apply).
Every other list is atomic.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from fettle.api.base import RULES

Schema = dict[str, Any]

INT_OR_STRING = "x-kubernetes-int-or-string"
PRESERVE = "x-kubernetes-preserve-unknown-fields"
VALIDATIONS = "x-kubernetes-validations"

COPIED = ("enum", "maximum", "minimum", "maxItems", "minItems", "maxLength", "minLength", "maxProperties", "pattern")
COPIED_EXTENSIONS = (INT_OR_STRING, VALIDATIONS)
KNOWN = {
    *COPIED,
    *COPIED_EXTENSIONS,
    *("additionalProperties", "default", "description", "exclusiveMinimum", "items", "properties", "required", "type"),
    *("$defs", "title", "readOnly", "x-map-keys", "x-preserve", "x-set", "x-unfilled"),
}


class SchemaError(TypeError):
    """A model says something that a CRD cannot: a fault of the model, found when the CRD is generated."""


class _Models(GenerateJsonSchema):
    """pydantic's generator, where Kubernetes means something else by the same type."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def union_schema(self, schema: core_schema.UnionSchema) -> JsonSchemaValue:
        kinds = {choice["type"] for choice in schema["choices"] if isinstance(choice, dict)}
        return {INT_OR_STRING: True} if kinds == {"int", "str"} else super().union_schema(schema)

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        return super().model_schema(schema) | validations(schema["cls"])


def validations(model: type[BaseModel]) -> Schema:
    """The CEL rules that stand on `model`, as a schema writes them; empty without any."""
    written = [{"rule": rule.expression, "message": rule.message} for rule in RULES.get(model, ())]
    return {VALIDATIONS: written} if written else {}


def schema_of(model: type[BaseModel], *, defaults: bool) -> Schema:
    """The structural schema of `model`. Raises SchemaError where a CRD cannot say what the model says.

    With `defaults` the API server fills in what is absent, except inside of lists: a GitOps tool compares lists as a
    whole, so an item that grew fields would differ from the manifest for ever. There the description says the default,
    and reading applies it.
    """
    raw = model.model_json_schema(by_alias=True, schema_generator=_Models, mode="serialization")
    return _structural(raw, raw.get("$defs", {}), defaults, model.__name__)


def _structural(node: Schema, models: Schema, defaults: bool, where: str) -> Schema:
    """One node, its keys in the order in which a person reads them."""
    node = _resolved(node, models)
    if unknown := node.keys() - KNOWN:
        raise SchemaError(f"{where}: not allowed in a CRD: {', '.join(sorted(unknown))}")
    out: Schema = {"description": node["description"]} if "description" in node else {}
    if "type" in node:
        out["type"] = node["type"]
    out |= {key: node[key] for key in COPIED if key in node}
    if "exclusiveMinimum" in node:
        out |= {"minimum": node["exclusiveMinimum"], "exclusiveMinimum": True}
    if node.get("type") == "array":
        out |= _list(node, models, where)
    elif node.get("type") == "object":
        out |= _object(node, models, defaults, where)
    elif "type" not in node and INT_OR_STRING not in node:
        raise SchemaError(f"{where}: a CRD needs one type, found {sorted(node)}")
    return out | {key: node[key] for key in COPIED_EXTENSIONS if key in node}


def _resolved(node: Schema, models: Schema) -> Schema:
    """`node` with its reference inlined; what stands beside the reference wins."""
    while "$ref" in node:
        beside = {key: value for key, value in node.items() if key != "$ref"}
        node = models[node["$ref"].removeprefix("#/$defs/")] | beside
    return node


def _list(node: Schema, models: Schema, where: str) -> Schema:
    items = _resolved(node["items"], models)
    if node.get("x-preserve"):
        return {"items": _unread(items), "x-kubernetes-list-type": "atomic"}
    out: Schema = {"items": _structural(items, models, False, f"{where}[]")}
    if keys := node.get("x-map-keys"):
        return out | {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys}
    return out | {"x-kubernetes-list-type": "set" if node.get("x-set") else "atomic"}


def _object(node: Schema, models: Schema, defaults: bool, where: str) -> Schema:
    if node.get("x-preserve"):
        return {PRESERVE: True}
    if "properties" not in node and node.get("additionalProperties") not in (None, False):
        return {"additionalProperties": _structural(node["additionalProperties"], models, False, f"{where}{{}}")}
    fields = {name: _resolved(field_schema, models) for name, field_schema in node.get("properties", {}).items()}
    required = [name for name in node.get("required", []) if not fields[name].get("readOnly")]  # computed, if at all
    properties = {
        name: _property(field_schema, models, defaults, f"{where}.{name}") for name, field_schema in fields.items()
    }
    return ({"required": required} if required else {}) | ({"properties": properties} if properties else {})


def _property(node: Schema, models: Schema, defaults: bool, where: str) -> Schema:
    out = _structural(node, models, defaults, where)
    if (default := node.get("default")) in (None, [], {}, ""):
        return out  # absent says the same, and `kubectl get -o yaml` stays short
    if "properties" in node:
        _same_defaults(node, models, default, where)
        # {} lets the fields' own defaults apply; where there are none, nothing has to appear.
        fills = defaults and any("default" in field for field in out.get("properties", {}).values())
        return out | ({"default": {}} if fills else {})
    if "default" not in out.get("description", "").lower():
        out["description"] = f"{out.get('description', '')} Default: {_spoken(default)}.".lstrip()
    return out | ({"default": default} if defaults and not node.get("x-unfilled") else {})


def _same_defaults(node: Schema, models: Schema, default: Schema, where: str) -> None:
    """A nested object's default must be its fields' own: CRDs have only the latter."""
    for name, field_schema in node["properties"].items():
        field = _resolved(field_schema, models)
        if name in default and default[name] != field.get("default"):
            raise SchemaError(f"{where}.{name}: default {default[name]} differs from the field's own")


def _unread(items: Schema) -> Schema:
    return {"type": items.get("type", "object"), PRESERVE: True}


def _spoken(default: Any) -> str:
    return ", ".join(str(item) for item in default) if isinstance(default, list) else str(default)
