"""What every API object is built from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import rfc8785
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from fettle.api.text import joined

GROUP = "fettle.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
MANAGED_LABEL = f"{GROUP}/managed"
MODEL_DEPLOYMENT_LABEL = f"{GROUP}/modeldeployment"  # name of the ModelDeployment that an object belongs to
OPTIMIZED_MODEL_LABEL = f"{GROUP}/optimizedmodel"
REVISION_LABEL = f"{GROUP}/revision"


def canonical_digest(document: Any) -> str:
    """sha256 (hexadecimal) of a JSON document's RFC 8785 canonical form: the same for whatever says the same."""
    return hashlib.sha256(rfc8785.dumps(document)).hexdigest()


class ApiModel(BaseModel):
    """A frozen object whose JSON names are camelCase.

    Unknown fields are ignored on reading: a newer API may have written them.
    """

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, serialize_by_alias=True, frozen=True, extra="ignore"
    )

    def to_json(self) -> dict[str, Any]:
        """This object as the API server stores it: camelCase names, nothing that is unset (None)."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def canonical(self) -> bytes:
        """RFC 8785 canonical JSON: what digests are taken of."""
        return rfc8785.dumps(self.to_json())

    @property
    def digest(self) -> str:
        """sha256 (hexadecimal) of the canonical JSON."""
        return canonical_digest(self.to_json())


def nothing(value: object) -> bool:
    """Whether a field of a status says nothing: 0, empty, or an object without content. As `exclude_if`, it keeps the field out of JSON."""
    return not (value.to_json() if isinstance(value, ApiModel) else value)


@dataclass(frozen=True)
class Rule:
    """A CEL rule of the CRD: `expression` holds for the object it stands on, or the API server answers `message`."""

    expression: str
    message: str


@dataclass(frozen=True)
class PrinterColumn:
    """A column of `kubectl get`, declared beside the status it prints."""

    name: str
    path: str
    type: str = "string"
    description: str = ""


ModelClass = TypeVar("ModelClass", bound=type[BaseModel])
RULES: dict[type[BaseModel], tuple[Rule, ...]] = {}


def rules(*attached: Rule) -> Callable[[ModelClass], ModelClass]:
    """Attach CEL rules to a model; the CRD generator writes them as `x-kubernetes-validations`."""

    def attach(model: ModelClass) -> ModelClass:
        RULES[model] = attached
        return model

    return attach


def exactly_one(what: str) -> Callable[[ModelClass], ModelClass]:
    """Attach the rule that exactly one of a model's fields is set; `what` names such an object, with its article."""

    def attach(model: ModelClass) -> ModelClass:
        declared: type[BaseModel] = model
        keys = [field.alias or name for name, field in declared.model_fields.items()]
        given = ", ".join(f"has(self.{key})" for key in keys)
        message = f"{what} must have exactly one key: {joined(keys, 'or')}"
        return rules(Rule(f"[{given}].filter(s, s).size() == 1", message))(model)

    return attach
