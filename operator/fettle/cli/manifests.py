"""OptimizedModels from YAML, read as strictly as `kubectl apply` reads them.

Unknown fields are refused with their path, types are not guessed, and the CRD's rules hold; only the rules that ask for
`pvc://` are wider here, where a model may also be a file of this machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fettle.api.base import API_VERSION, RULES, ApiModel
from fettle.api.optimizedmodel import (
    CalibrationSpec,
    DataSpec,
    EvaluationSpec,
    OptimizedModelSpec,
    SourceSpec,
    StoreSpec,
    TargetSpec,
    ValueRange,
)
from fettle.api.recipe import RecipeStep
from fettle.api.vocabulary import QuantizeMode
from fettle.errors import UsageError

KIND = "OptimizedModel"
CLAIM = re.compile(r"pvc://[a-z0-9][a-z0-9.-]*(/.*)?$")
NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")
TOP_LEVEL = {"apiVersion", "kind", "metadata", "spec", "status"}
CPU_UNITS = {"": Decimal(1), "m": Decimal("0.001"), "k": Decimal(1000)}


@dataclass(frozen=True)
class Manifest:
    """An OptimizedModel as a file gives it, addresses of this machine made absolute."""

    namespace: str
    name: str
    spec: OptimizedModelSpec
    document: Mapping[str, Any]


@dataclass(frozen=True)
class Documents:
    """What a file holds: OptimizedModels, and the kinds of what else was found and left alone."""

    models: tuple[Manifest, ...]
    others: tuple[str, ...]


def read(text: str, source: str, folder: Path) -> Documents:
    """Every OptimizedModel in the YAML `text`. `source` names it in messages, relative paths in it start at `folder`.

    Raises UsageError that names every fault of the first document that has one.
    """
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise UsageError(f"{source} is not YAML: {error}") from error
    models, others = [], []
    for number, document in enumerate(documents, 1):
        where = source if len(documents) == 1 else f"{source}, document {number}"
        if not isinstance(document, dict) or "kind" not in document:
            raise UsageError(f"{where}: a Kubernetes object is expected (apiVersion, kind, metadata, spec)")
        if document["kind"] != KIND:
            others.append(str(document["kind"]))
            continue
        models.append(_manifest(document, where, folder))
    if not models:
        found = ", ".join(others) or "nothing"
        raise UsageError(f"{source}: no {KIND} in it (found: {found})")
    return Documents(tuple(models), tuple(others))


def _manifest(document: dict[str, Any], where: str, folder: Path) -> Manifest:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    faults = []
    if document.get("apiVersion") != API_VERSION:
        faults.append(f"apiVersion: must be {API_VERSION}, found {document.get('apiVersion')!r}")
    if not isinstance(name, str) or not NAME.match(name):
        faults.append(f"metadata.name: a lower-case name is expected, found {name!r}")
    faults += [f"{key}: unknown field" for key in sorted(document.keys() - TOP_LEVEL)]
    spec = document.get("spec")
    if not isinstance(spec, dict):
        faults.append("spec: missing")
    if faults:
        raise UsageError(_told(where, faults))
    parsed = _spec(spec, where)
    namespace = metadata.get("namespace", "default") if isinstance(metadata, dict) else "default"
    return Manifest(str(namespace), str(name), _absolute(parsed, folder), document)


def _told(where: str, faults: list[str]) -> str:
    return f"{where}: {faults[0]}" if len(faults) == 1 else f"{where}:\n  " + "\n  ".join(faults)


def _spec(raw: Any, where: str) -> OptimizedModelSpec:
    try:
        # JSON's strict mode: lists are tuples and words are enums, but "2" is no number.
        spec = OptimizedModelSpec.model_validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        faults = [_fault(one) for one in error.errors()]
        # A field that is missing is often there under a wrong name.
        raise UsageError(_told(where, [*faults, *_unknown_keys(raw)])) from error
    faults = [*unknown_fields(raw, spec), *broken_rules(spec)]
    if faults:
        raise UsageError(_told(where, faults))
    return spec


def _unknown_keys(raw: dict[str, Any]) -> list[str]:
    """Top-level fields of a spec that could not be read at all."""
    known = {field.alias or name for name, field in OptimizedModelSpec.model_fields.items()}
    return [f"spec.{key}: unknown field" for key in raw if key not in known]


def _fault(error: Any) -> str:
    path = _path(("spec", *error["loc"]))
    return f"{path}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def _path(parts: tuple[int | str, ...]) -> str:
    """`spec.targets[0].name`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


def unknown_fields(raw: Any, spec: ApiModel) -> list[str]:
    """Paths in `raw` that the model did not take. Everything it took comes out again when it is written."""

    def walk(given: Any, taken: Any, path: tuple[int | str, ...]) -> Iterator[str]:
        if isinstance(given, dict) and isinstance(taken, dict):
            for key, value in given.items():
                if key not in taken:
                    yield f"{_path((*path, str(key)))}: unknown field"
                else:
                    yield from walk(value, taken[key], (*path, str(key)))
        elif isinstance(given, list) and isinstance(taken, list):
            for number, (one, other) in enumerate(zip(given, taken, strict=True)):
                yield from walk(one, other, (*path, number))

    return list(walk(raw, spec.model_dump(mode="json", by_alias=True), ("spec",)))


# ------------------------------------------------------------------------------------------------------- the CRD's rules


def broken_rules(spec: OptimizedModelSpec) -> list[str]:
    """The messages of the CRD's rules that do not hold, with their paths."""
    found = [
        f"{_path(path)}: {message}"
        for model, path in _models(spec, ("spec",))
        for holds, message in CHECKS.get(type(model), ())
        if not holds(model)
    ]
    return found + _doubles(spec)


def _models(model: BaseModel, path: tuple[int | str, ...]) -> Iterator[tuple[BaseModel, tuple[int | str, ...]]]:
    """`model` and every model inside it."""
    yield model, path
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        below = (*path, field.alias or name)
        if isinstance(value, BaseModel):
            yield from _models(value, below)
        elif isinstance(value, tuple):
            for number, one in enumerate(value):
                if isinstance(one, BaseModel):
                    yield from _models(one, (*below, number))


def _doubles(spec: OptimizedModelSpec) -> list[str]:
    """Names that stand twice where they must be unique."""
    lists = {
        "spec.targets": [one.name for one in spec.targets],
        "spec.recipes": [one.name for one in spec.recipes],
        "spec.source.inputs": [one.name for one in spec.source.inputs],
    }
    return [
        f"{path}: the name {name!r} stands twice"
        for path, names in lists.items()
        for name in sorted({name for name in names if names.count(name) > 1})
    ]


def _is_readable(address: Any) -> bool:
    uri = str(address.uri)
    return bool(CLAIM.match(uri)) or uri.startswith("file://") or "://" not in uri


def _has_cores(target: Any) -> bool:
    limit = target.resources.limits.get("cpu")
    return limit is None or cores(limit) >= target.threads


def cores(quantity: int | str) -> Decimal:
    """CPU cores of a Kubernetes quantity: `2`, `"500m"`, `"1.5"`. Infinite where it is none: the cluster would refuse it."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)([mk]?)", str(quantity))
    return Decimal(found[1]) * CPU_UNITS[found[2]] if found else Decimal("Infinity")


def _has_one_key(step: Any) -> bool:
    return [step.optimize_graph is not None, step.quantize is not None].count(True) == 1


def _has_data(spec: Any) -> bool:
    steps = [step.quantize for recipe in spec.recipes for step in recipe.steps if step.quantize is not None]
    data = spec.data.calibration is not None or spec.data.evaluation is not None
    return data or all(step.mode == QuantizeMode.DYNAMIC for step in steps)


Check = Callable[[Any], bool]
HOLDS: dict[type[BaseModel], tuple[Check, ...]] = {
    ValueRange: (lambda bounds: bounds.min <= bounds.max,),
    SourceSpec: (_is_readable,),
    CalibrationSpec: (_is_readable,),
    EvaluationSpec: (_is_readable,),
    DataSpec: (lambda data: data.generated is None or data.evaluation is None,),
    StoreSpec: (_is_readable,),
    TargetSpec: (_has_cores,),
    RecipeStep: (_has_one_key,),
    OptimizedModelSpec: (_has_data,),
}
# Each check with the message of the CEL rule that it stands for, in the order in which the rules are written.
CHECKS: dict[type[BaseModel], tuple[tuple[Check, str], ...]] = {
    model: tuple(zip(checks, (rule.message for rule in RULES[model]), strict=True)) for model, checks in HOLDS.items()
}


# --------------------------------------------------------------------------------------------------------- file addresses


def _absolute(spec: OptimizedModelSpec, folder: Path) -> OptimizedModelSpec:
    """`spec` with every plain path made a file:// address, relative ones from `folder`."""

    def moved(part: Any) -> Any:
        return part if part is None else part.model_copy(update={"uri": file_uri(part.uri, folder)})

    data = spec.data.model_copy(
        update={"calibration": moved(spec.data.calibration), "evaluation": moved(spec.data.evaluation)}
    )
    return spec.model_copy(update={"source": moved(spec.source), "data": data, "store": moved(spec.store)})


def file_uri(uri: str, folder: Path) -> str:
    """`uri` itself where it has a scheme, else the file:// address of that path."""
    return uri if "://" in uri else (folder / Path(uri).expanduser()).resolve().as_uri()
