"""A field is in the CRD only together with the code that acts on it: each one is read outside of the kinds themselves.

What a name stands for is inferred as far as that needs: from annotations, and from what is assigned or looped over. It is a guess
in the field's favour where one name stands for several models.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from fettle import api
from fettle.api import base
from fettle.api.constraints import LatencyConstraint
from fettle.api.modeldeployment import ModelDeploymentSpec
from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.pods import EnvVar, LocalReference, ResourceSpec, Toleration

SOURCE = Path(inspect.getfile(base)).parents[1]
PAGE = Path(__file__).parents[3] / "docs" / "design" / "where.md"
# Copied into pods as they are, so that Kubernetes is what reacts to their fields.
COPIED_WHOLE = {EnvVar, LocalReference, ResourceSpec, Toleration}
DUMPS = {"to_json", "model_dump"}
THAT_ACT = {"bounds.py", "catalog.py", "recipe.py"}  # the only decisions that stand beside the kinds


def models_in(annotation: Any) -> set[type[BaseModel]]:
    """The models that an annotation speaks of, through Annotated, tuples, unions."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return {annotation}
    return set().union(*(models_in(argument) for argument in get_args(annotation)))


def reachable(model: type[BaseModel]) -> Iterator[tuple[type[BaseModel], str]]:
    """Each (model, field) of a spec."""
    todo, seen = [model], set()
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        for name, field in current.model_fields.items():
            yield current, name
            todo += models_in(field.annotation)


ALL_MODELS = {
    name: model
    for entry in pkgutil.iter_modules(api.__path__)
    for module in [importlib.import_module(f"fettle.api.{entry.name}")]
    for name, model in vars(module).items()
    if inspect.isclass(model) and issubclass(model, BaseModel)
}
FIELDS = sorted(
    set(reachable(OptimizedModelSpec)) | set(reachable(ModelDeploymentSpec)),
    key=lambda pair: (pair[0].__name__, pair[1]),
)


Models = set[type[BaseModel]]
Field = tuple[type[BaseModel], str]


class Reads:
    """What the code reads of which model, and where: (model, field) -> places such as `plan/run/rounds.py::_build`."""

    def __init__(self) -> None:
        self.attributes: dict[str, Models] = defaultdict(set)  # of any object: fields, and what functions return
        self.variables: dict[tuple[int, str], Models] = defaultdict(set)  # within one function
        self.found: dict[Field, set[str]] = defaultdict(set)
        for model in ALL_MODELS.values():
            for name, field in model.model_fields.items():
                self.attributes[name] |= models_in(field.annotation)
        scopes = [
            (f"{path.relative_to(SOURCE)}::{name}", nodes)
            for path in sorted(SOURCE.rglob("*.py"))
            if path.parent.name != "api" or path.name in THAT_ACT
            for name, nodes in _scopes(ast.parse(path.read_text()))
        ]
        before = -1
        while before != (before := self._known()):  # until nothing new is learnt
            for self.scope, (_, nodes) in enumerate(scopes):
                for node in nodes:
                    self._learn(node)
        for self.scope, (place, nodes) in enumerate(scopes):
            for node in nodes:
                if isinstance(node, ast.Attribute):
                    self._read(node, place)

    def _known(self) -> int:
        return sum(len(models) for table in (self.attributes, self.variables) for models in table.values())

    def _named(self, annotation: ast.expr | None) -> Models:
        words = re.findall(r"\w+", ast.unparse(annotation)) if annotation is not None else []
        return {ALL_MODELS[word] for word in words if word in ALL_MODELS}

    def _learn(self, node: ast.AST) -> None:
        match node:
            case ast.arg(arg=name, annotation=annotation):
                self.variables[self.scope, name] |= self._named(annotation)
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):  # a variable, or a dataclass's field
                self.variables[self.scope, name] |= self._named(annotation)
                self.attributes[name] |= self._named(annotation)
            case ast.FunctionDef(name=name, returns=returns) | ast.AsyncFunctionDef(name=name, returns=returns):
                self.attributes[name] |= self._named(returns)
            case ast.Assign(targets=[target], value=value):
                self._bind(target, value)
            case ast.NamedExpr(target=target, value=value):
                self._bind(target, value)
            case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
                self._bind(target, value)

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        match target, value:
            case ast.Name(id=name), _:
                self.variables[self.scope, name] |= self._of(value)
            case ast.Attribute(attr=name), _:
                self.attributes[name] |= self._of(value)
            case ast.Tuple(elts=targets), ast.Tuple(elts=values):
                for inner, found in zip(targets, values, strict=False):
                    self._bind(inner, found)

    def _of(self, value: ast.expr) -> Models:
        match value:
            case ast.Name(id=name):
                return self.variables.get((self.scope, name)) or set()
            case ast.Attribute(value=inner, attr=name):
                exact = [model.model_fields[name] for model in self._of(inner) if name in model.model_fields]
                return (
                    set().union(*(models_in(field.annotation) for field in exact)) if exact else self.attributes[name]
                )
            case ast.Call(func=ast.Attribute(value=inner, attr="get" | "pop" | "values")):  # out of a container
                return self._of(inner)
            case ast.Call(func=ast.Name(id=name), args=arguments):
                return self.attributes[name].union(*(self._of(argument) for argument in arguments))
            case ast.Call(func=func):
                return self._of(func)
            case ast.DictComp(value=inner) | ast.ListComp(elt=inner) | ast.GeneratorExp(elt=inner):
                return self._of(inner)
            case ast.Subscript(value=inner) | ast.Await(value=inner) | ast.Starred(value=inner):
                return self._of(inner)
            case ast.BoolOp(values=values):
                return set().union(*(self._of(inner) for inner in values))
            case ast.IfExp(body=one, orelse=other):
                return self._of(one) | self._of(other)
        return set()

    def _read(self, node: ast.Attribute, place: str) -> None:
        for model in self._of(node.value):
            if model in COPIED_WHOLE and node.attr in DUMPS:
                for name in model.model_fields:
                    self.found[model, name].add(place)
            for parent in model.__mro__:
                if inspect.isclass(parent) and issubclass(parent, BaseModel):
                    self.found[parent, node.attr].add(place)


def _scopes(tree: ast.AST) -> Iterator[tuple[str, list[ast.AST]]]:
    """The name and the nodes of each function with what is nested in it, and those outside of any."""
    outside: list[ast.AST] = []
    todo = [tree]
    while todo:
        for child in ast.iter_child_nodes(todo.pop()):
            outside.append(child)
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child.name, list(ast.walk(child))
            else:
                todo.append(child)
    yield "", outside


@pytest.fixture(scope="module")
def reads() -> Reads:
    return Reads()


@pytest.mark.parametrize(("model", "field"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_something_reacts_to_it(reads: Reads, model: type[BaseModel], field: str) -> None:
    assert (model, field) in reads.found, (
        f"nothing reads {model.__name__}.{field}: act on it, or take it out of the API"
    )


def test_a_field_that_nobody_reads_is_noticed(reads: Reads) -> None:
    assert (OptimizedModelSpec, "sauce") not in reads.found
    assert (LatencyConstraint, "max_bytes") not in reads.found


def leaves(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, Field]]:
    """Each field of a spec that holds a value, by its path in a manifest."""
    for name, field in model.model_fields.items():
        inner = {found for found in models_in(field.annotation) - COPIED_WHOLE if found.model_fields}
        here = f"{path}{field.alias or name}"
        if not inner:
            yield here, (model, name)
        for found in inner:
            yield from leaves(found, f"{here}{'[]' if 'tuple' in str(field.annotation) else ''}.")


def guide(kind: str) -> dict[str, list[str]]:
    """What the page says of a kind: path of a field -> places."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {kind}\n")[2].partition("\n## ")[0]
    told: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            fields, places = (re.findall(r"`([^`]+)`", cell) for cell in line.strip("| ").split(" | "))
            told |= {field.replace("*", data): places for field in fields for data in ("calibration", "evaluation")}
    return told


@pytest.mark.parametrize(
    ("kind", "spec"), [("OptimizedModel", OptimizedModelSpec), ("ModelDeployment", ModelDeploymentSpec)]
)
def test_the_page_leads_from_each_field_to_a_function_that_reads_it(
    reads: Reads, kind: str, spec: type[BaseModel]
) -> None:
    told, fields = guide(kind), dict(leaves(spec))
    assert set(told) == set(fields)
    wrong = [
        (path, place) for path, places in told.items() for place in places if place not in reads.found[fields[path]]
    ]
    assert wrong == []
