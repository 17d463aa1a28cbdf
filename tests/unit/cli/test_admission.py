"""What is said of a manifest without a cluster is what a real API server says (tests/cluster/test_crds.py asks one the same table)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tests.data.manifest_tables import BAD, EXAMPLES, GOOD, TABLES, manifest

from fettle.api import crd
from fettle.api.modeldeployment import ModelDeploymentSpec
from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.schema import VALIDATIONS
from fettle.cli.local import admission

MODELS = {"OptimizedModel": OptimizedModelSpec, "ModelDeployment": ModelDeploymentSpec}


def said(document: dict[str, Any]) -> list[str]:
    """What is wrong with an object."""
    schema = admission.schema_of(document["kind"])
    return admission.complaints(admission.completed(document, schema), schema)


def rules(node: Any) -> Iterator[dict[str, str]]:
    """Every rule below a schema's node."""
    if isinstance(node, dict):
        yield from node.get(VALIDATIONS, [])
        for value in node.values():
            yield from rules(value)


MESSAGES = {rule["message"] for kind in crd.KINDS for rule in rules(crd.root_schema(kind))}


def place(complaint: str) -> str:
    """A complaint as far as both must say it: a rule's with its message, of the schema's the path alone."""
    path, _, text = complaint.partition(": ")  # of a rule on the whole object there is no path, and this is its message
    unknown = re.fullmatch(r'strict decoding error: unknown field "(.*)"', complaint)
    return unknown[1] if unknown is not None else complaint if text in MESSAGES else path


@pytest.mark.parametrize(("kind", "case"), GOOD)
def test_what_an_api_server_takes_is_taken(kind: str, case: str) -> None:
    document = manifest(kind, "good", case)
    assert said(document) == []
    model = MODELS[document["kind"]]
    stored = admission.completed(document, admission.schema_of(document["kind"]))
    assert model.model_validate(stored["spec"]) == model.model_validate(document["spec"])


@pytest.mark.parametrize(("kind", "case"), BAD)
def test_what_an_api_server_refuses_is_refused_at_the_same_place_and_by_the_same_rule(kind: str, case: str) -> None:
    found = said(manifest(kind, "bad", case))
    assert sorted(map(place, found)) == sorted(map(place, TABLES[kind]["bad"][case]["complaints"])), found


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_and_every_manifest_of_the_docs_is_taken(text: str) -> None:
    for document in yaml.safe_load_all(text):
        assert said(document) == []


@pytest.mark.parametrize("kind", crd.KINDS, ids=lambda kind: kind.name)
def test_every_rule_can_be_run_here(kind: crd.Kind) -> None:
    """A rule with a function that nobody defined, or with a field of its own that is not acted on, is found before it is used."""
    for rule in rules(crd.root_schema(kind)):
        assert rule.keys() == {"rule", "message"}
        admission.compiled(rule["rule"])


def test_a_rule_about_a_change_says_nothing_of_what_is_new() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    schema |= {
        VALIDATIONS: [
            {"rule": "self.a == oldSelf.a", "message": "a is fixed"},
            {"rule": "self.a < 3", "message": "a is small"},
        ]
    }
    assert admission.complaints({"a": 2}, schema) == []
    assert admission.complaints({"a": 3}, schema) == ["a is small"]


def test_a_rule_that_cannot_be_evaluated_does_not_hold() -> None:
    schema = {"type": "object", VALIDATIONS: [{"rule": "self.a > 1", "message": "a is needed"}]}
    assert admission.complaints({}, schema) == ["a is needed"]
