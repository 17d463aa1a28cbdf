"""Admission of Fettle objects without an API server: the schema and the CEL rules of the CRD itself are evaluated here.

As on the server, nulls are dropped and defaults filled in, unknown fields are refused (`fieldValidation: Strict`, as kubectl requests),
the schema is checked at every node, and every rule is evaluated if the types are right. The schema comes from `fettle.api.crd`, which also
writes the CRD, so there is no second copy. Rules about a change (`oldSelf`) do not apply to new objects.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import cache
from typing import Any

from jsonschema import Draft4Validator, ValidationError, validators

from fettle.api import crd
from fettle.api.schema import INT_OR_STRING, PRESERVE, VALIDATIONS, Schema
from fettle.api.text import quoted

Path = tuple[int | str, ...]
# After these the server runs no rule, for what a rule sees would not be of its types, or too much of it.
BLOCKING = ("type", "enum", "required", "maxItems", "maxLength", "maxProperties", INT_OR_STRING)
LIST_TYPE, LIST_KEYS = "x-kubernetes-list-type", "x-kubernetes-list-map-keys"


@cache
def schema_of(kind: str) -> Schema:
    """The schema of a whole object of that kind, as in its CRD."""
    return next(crd.root_schema(known) for known in crd.KINDS if known.name == kind)


def completed(node: Any, schema: Schema) -> Any:
    """`node` as the server stores it: without nulls, with defaults. 2.0 counts as an integer, as in JSON."""
    if isinstance(node, float) and node.is_integer() and (schema.get("type") == "integer" or schema.get(INT_OR_STRING)):
        return int(node)
    if isinstance(node, list):
        return [completed(item, schema.get("items", {})) for item in node]
    if not isinstance(node, dict):
        return node
    fields, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    given = {key: value for key, value in node.items() if value is not None or schema.get(PRESERVE)}
    filled = {key: field["default"] for key, field in fields.items() if "default" in field} | given
    return {key: completed(value, fields.get(key, others)) for key, value in filled.items()}


def complaints(
    document: Any, schema: Schema, seen_by_rules: Callable[[Any], Any] = lambda document: document
) -> list[str]:
    """Every fault of an object that `completed` returned, each as `path: what is wrong`.

    `seen_by_rules` converts the document for the rules, if they must see something else.
    """
    errors = list(_STRUCTURE(schema).iter_errors(document))
    if not any(error.validator in BLOCKING for error in errors):
        errors += _RULES(schema).iter_errors(seen_by_rules(document))
    return [_told(error) for error in errors]


def path_of(parts: Path) -> str:
    """`spec.targets[0].name`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


# ----------------------------------------------------------------------------------------------- Kubernetes' own keywords


def _properties(validator: Any, fields: Schema, node: Any, schema: Schema) -> Iterator[ValidationError]:
    if not isinstance(node, dict):
        return
    if not schema.get(PRESERVE):
        for key in sorted(node.keys() - fields.keys()):
            yield ValidationError("unknown field", path=[key], validator="unknown")
    for key, field in fields.items():
        if key in node:
            yield from validator.descend(node[key], field, path=key, schema_path=key)


def _required(validator: Any, names: list[str], node: Any, schema: Schema) -> Iterator[ValidationError]:
    for name in names:
        if isinstance(node, dict) and name not in node:
            yield ValidationError("field required", path=[name])


def _int_or_string(validator: Any, wanted: bool, node: Any, schema: Schema) -> Iterator[ValidationError]:
    if wanted and (isinstance(node, bool) or not isinstance(node, int | str)):
        yield ValidationError(f"must be an integer or a string, found {_shown(node)}")


def _no_doubles(validator: Any, kind: str, node: Any, schema: Schema) -> Iterator[ValidationError]:
    if kind not in ("map", "set") or not isinstance(node, list):
        return
    keys = schema.get(LIST_KEYS, [])
    seen: set[str] = set()
    for number, item in enumerate(node):
        identity = {key: item.get(key) for key in keys} if keys and isinstance(item, dict) else item
        text = json.dumps(identity, sort_keys=True)
        if text in seen:
            yield ValidationError(f"duplicate value {text}", path=[number])
        seen.add(text)


def _rules(validator: Any, rules: list[Mapping[str, str]], node: Any, schema: Schema) -> Iterator[ValidationError]:
    for rule in rules:
        if (
            not re.search(r"\boldSelf\b", rule["rule"])
            and compiled(rule["rule"]).eval(data={"self": node}).value() is not True
        ):
            yield ValidationError(rule["message"])


def _finite(checker: Any, node: Any) -> bool:
    return not isinstance(node, bool) and isinstance(node, int | float) and math.isfinite(node)


_extended: Callable[..., Any] = validators.extend
_STRUCTURE = _extended(
    Draft4Validator,
    {"properties": _properties, "required": _required, INT_OR_STRING: _int_or_string, LIST_TYPE: _no_doubles},
    type_checker=Draft4Validator.TYPE_CHECKER.redefine("number", _finite),
)
_RULES = _extended(
    Draft4Validator,
    {
        **{keyword: lambda *_: iter(()) for keyword in Draft4Validator.VALIDATORS},
        **{keyword: Draft4Validator.VALIDATORS[keyword] for keyword in ("properties", "items", "additionalProperties")},
        VALIDATIONS: _rules,
    },
)


_TEXTS = {
    "type": "must be of type {bound}, found {found}",
    "enum": "must be one of {bound}, found {found}",
    "minimum": "must be greater than {equal}{bound}, found {found}",
    "maximum": "must be less than or equal to {bound}, found {found}",
    "minItems": "must have at least {bound} items, found {found}",
    "maxItems": "must have at most {bound} items",
    "maxProperties": "must have at most {bound} entries",
    "minLength": "must have at least {bound} characters, found {found}",
    "maxLength": "must have at most {bound} characters",
    "pattern": "must match {bound}, found {found}",
}


def _told(error: ValidationError) -> str:
    """A schema error with its path, in words."""
    text = _TEXTS.get(str(error.validator))
    exclusive = isinstance(error.schema, Mapping) and error.schema.get("exclusiveMinimum")
    values = {
        "bound": error.validator_value,
        "found": _shown(error.instance),
        "equal": "" if exclusive else "or equal to ",
    }
    said = error.message if text is None else text.format(**values)
    return f"{path_of(tuple(error.absolute_path))}: {said}".removeprefix(": ")


def _shown(value: Any) -> str:
    return quoted(repr(value), 80)


# ------------------------------------------------------------------------------------------------------------------- CEL


@cache
def compiled(rule: str) -> Any:
    """The compiled rule. Raises RuntimeError if it is not CEL that this program supports."""
    return _environment().compile(rule)


@cache
def _environment() -> Any:
    """CEL with the Kubernetes functions that our rules use: https://kubernetes.io/docs/reference/using-api/cel/."""
    from cel_expr_python import cel  # 16 MB of native code, which only those who check a manifest need

    any_, true_or_false, number = cel.Type.DYN, cel.Type.BOOL, cel.Type.DOUBLE

    def function(name: str, returns: Any, implementation: Callable[..., Any], *, member: bool = False) -> Any:
        overload = cel.Overload(f"fettle_{name}", returns, [any_], is_member=member, impl=implementation)
        return cel.FunctionDecl(name, [overload])

    kubernetes = cel.CelExtension(
        "kubernetes",
        [
            function("isQuantity", true_or_false, lambda text: _quantity(text) is not None),
            function("quantity", any_, lambda text: text),
            function("asApproximateFloat", number, lambda text: float(_quantity(text) or math.nan), member=True),
            function("isSorted", true_or_false, lambda values: list(values) == sorted(values), member=True),
        ],
    )
    return cel.NewEnv(variables={"self": any_}, extensions=[kubernetes])


def _quantity(text: Any) -> Decimal | None:
    """A Kubernetes quantity as a number; None if `text` is not a quantity."""
    from fettle.cluster.quantity import quantity  # the Kubernetes client takes a second to import

    return quantity(text)
