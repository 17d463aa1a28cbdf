"""OptimizedModels from YAML, read as `kubectl apply` reads them.

The CRD's own schema and rules apply (`admission.py`), except that an address may also be a file of this machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fettle.api.base import API_VERSION
from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.cli.local import admission
from fettle.errors import UsageError

KIND = "OptimizedModel"
NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
NAME_LIMIT = 253


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes' clients read it: 1e-3 is a number, and a date stays text."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


@dataclass(frozen=True)
class ModelDocument:
    """An OptimizedModel from a file, with absolute addresses for files of this machine."""

    namespace: str
    name: str
    spec: OptimizedModelSpec
    document: Mapping[str, Any]


@dataclass(frozen=True)
class Documents:
    """The content of a file: its OptimizedModels, and the kinds of the other objects, which are ignored."""

    models: tuple[ModelDocument, ...]
    others: tuple[str, ...]


def read(text: str, source: str, folder: Path) -> Documents:
    """Every OptimizedModel in the YAML `text`. `source` names it in messages; relative paths in it start at `folder`.

    Raises UsageError, which lists all faults of the first faulty document.
    """
    try:
        documents = [document for document in yaml.load_all(text, _Loader) if document is not None]
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a number or a text that is none
        raise UsageError(f"{source} is not valid YAML: {error}") from error
    models, others = [], []
    for number, document in enumerate(documents, 1):
        where = source if len(documents) == 1 else f"{source}, document {number}"
        if not isinstance(document, dict) or "kind" not in document:
            raise UsageError(f"{where}: expected a Kubernetes object (apiVersion, kind, metadata, spec)")
        if document["kind"] != KIND:
            others.append(str(document["kind"]))
            continue
        models.append(_manifest(document, where, folder))
    if not models:
        kinds = ", ".join(others) or "nothing"
        raise UsageError(f"{source} contains no {KIND} (found: {kinds})")
    return Documents(tuple(models), tuple(others))


def _manifest(document: dict[str, Any], where: str, folder: Path) -> ModelDocument:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    faults = []
    if document.get("apiVersion") != API_VERSION:
        faults.append(f"apiVersion: must be {API_VERSION}, found {document.get('apiVersion')!r}")
    if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > NAME_LIMIT:
        faults.append(f"metadata.name: expected a lower-case name of at most {NAME_LIMIT} characters, found {name!r}")
    schema = admission.schema_of(KIND)
    whole = admission.completed(
        _as_json({key: value for key, value in document.items() if key != "status"}, where), schema
    )
    faults += admission.complaints(whole, schema, _in_claims)
    if faults:
        raise UsageError(_told(where, faults))
    spec = _spec(whole["spec"], where)
    namespace = metadata.get("namespace", "default") if isinstance(metadata, dict) else "default"
    return ModelDocument(str(namespace), str(name), _absolute(spec, folder), document)


def _as_json(document: Any, where: str) -> Any:
    """`document` as JSON, with strings as keys."""
    try:
        return json.loads(json.dumps(document, default=str))
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{where} cannot be represented as JSON, as the API server requires: {error}") from error


def _told(where: str, faults: list[str]) -> str:
    return f"{where}: {faults[0]}" if len(faults) == 1 else f"{where}:\n  " + "\n  ".join(faults)


def _spec(raw: Any, where: str) -> OptimizedModelSpec:
    """Parse a spec that the schema accepts. Raises UsageError for faults that only the Python models find."""
    try:
        return OptimizedModelSpec.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        faults = [f"{admission.path_of(('spec', *fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise UsageError(_told(where, faults)) from error


def _in_claims(node: Any) -> Any:
    """`node` with every local address replaced by one in a claim, for the rules that require claims."""
    if isinstance(node, list):
        return [_in_claims(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: "pvc://here/" if key == "uri" and _is_here(value) else _in_claims(value) for key, value in node.items()
    }


def _is_here(uri: Any) -> bool:
    return isinstance(uri, str) and (uri.startswith("file://") or "://" not in uri)


# --------------------------------------------------------------------------------------------------------- file addresses


def _absolute(spec: OptimizedModelSpec, folder: Path) -> OptimizedModelSpec:
    """`spec` with every plain path converted to a file:// address; relative paths start at `folder`."""

    def moved(part: Any) -> Any:
        return part if part is None or part.uri is None else part.model_copy(update={"uri": file_uri(part.uri, folder)})

    evaluation = moved(spec.data.evaluation)
    if evaluation is not None:
        evaluation = evaluation.model_copy(update={"custom": moved(evaluation.custom)})
    parts = {"calibration": moved(spec.data.calibration), "training": moved(spec.data.training)}
    data = spec.data.model_copy(update={**parts, "evaluation": evaluation})
    source = moved(spec.source).model_copy(update={"factory": moved(spec.source.factory)})
    recipes = tuple(
        recipe.model_copy(update={"train": recipe.train.model_copy(update={"custom": moved(recipe.train.custom)})})
        for recipe in spec.recipes
    )
    return spec.model_copy(update={"source": source, "data": data, "recipes": recipes, "store": moved(spec.store)})


def file_uri(uri: str, folder: Path) -> str:
    """`uri` itself if it has a scheme, else the file:// address of that path."""
    return uri if "://" in uri else (folder / Path(uri).expanduser()).resolve().as_uri()
