"""The CRD generator: what it writes for our models, and what it refuses of others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from click.testing import CliRunner
from pydantic import Field

from fettle.api import crd, reference
from fettle.api.base import ApiModel, Rule, rules
from fettle.api.crd import KINDS, Kind
from fettle.api.schema import SchemaError, schema_of

ROOT = Path(__file__).parents[3]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def nodes(schema: dict[str, Any], where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield where, schema
    for name, field in schema.get("properties", {}).items():
        yield from nodes(field, f"{where}.{name}")
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from nodes(schema[name], f"{where}[]")


@pytest.mark.parametrize("command", [crd.main, reference.main], ids=["crd", "reference"])
def test_the_files_in_the_repository_are_what_the_models_say(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(command, ["--check"])
    assert result.exit_code == 0, result.output


def test_a_changed_file_is_named_and_the_exit_status_is_1(tmp_path: Path) -> None:
    CliRunner().invoke(crd.main, [str(tmp_path)])
    changed = tmp_path / "fettle.dev_optimizedmodels.yaml"
    changed.write_text(changed.read_text() + "# by hand\n")
    result = CliRunner().invoke(crd.main, [str(tmp_path), "--check"])
    assert result.exit_code == 1
    assert str(changed) in result.output
    assert "modeldeployments" not in result.output


@kinds
def test_a_crd_fits_into_the_annotation_that_kubectl_apply_writes(kind: Kind) -> None:
    assert len(crd.manifest(kind).encode()) < 256 * 1024  # the API server's bound on all annotations of an object


@kinds
def test_every_field_of_spec_and_status_is_described(kind: Kind) -> None:
    schema = crd.root_schema(kind)
    bare = [where for where, node in nodes(schema) if not where.endswith("[]") and not node.get("description")]
    assert bare == [".metadata"]


@kinds
def test_nothing_is_nullable_and_no_reference_is_left(kind: Kind) -> None:
    text = crd.manifest(kind)
    assert "nullable" not in text
    assert "$ref" not in text
    assert "anyOf" not in text


@kinds
def test_defaults_stand_in_spec_but_not_in_lists_and_status_has_one_that_says_that_nobody_looked_yet(
    kind: Kind,
) -> None:
    found = {where: node["default"] for where, node in nodes(crd.root_schema(kind)) if "default" in node}
    assert found.pop(".status") == {"observedGeneration": -1}
    assert found
    assert all(path.startswith(".spec") and "[]" not in path for path in found)


@pytest.mark.parametrize("model", [kind.status for kind in crd.KINDS])
def test_the_default_of_status_is_read_as_no_status(model: type[Any]) -> None:
    assert model.model_validate({"observedGeneration": -1}) == model()
    assert model.model_validate({"observedGeneration": 3}).observed_generation == 3


@kinds
def test_every_list_says_how_it_is_merged(kind: Kind) -> None:
    lists = [(where, node) for where, node in nodes(crd.root_schema(kind)) if node.get("type") == "array"]
    assert lists
    for where, node in lists:
        assert node["x-kubernetes-list-type"] in {"atomic", "map", "set"}, where
        for key in node.get("x-kubernetes-list-map-keys", ()):
            assert key in node["items"]["required"], where


@kinds
def test_every_list_and_map_of_the_spec_is_bounded(kind: Kind) -> None:
    for where, node in nodes(crd.root_schema(kind)["properties"]["spec"], "spec"):
        if node.get("type") == "array":
            assert "maxItems" in node, where
        if "additionalProperties" in node:
            assert "maxProperties" in node, where


def test_a_modeldeployment_scales() -> None:
    whole = {kind.name: crd.crd(kind)["spec"]["versions"][0]["subresources"] for kind in KINDS}
    assert "scale" not in whole["OptimizedModel"]
    assert whole["ModelDeployment"]["scale"]["labelSelectorPath"] == ".status.selector"


def test_the_charts_copy_differs_from_the_plain_one_by_its_conditions_only() -> None:
    for kind in KINDS:
        plain = yaml.load(crd.manifest(kind), yaml.CSafeLoader)
        lines = [line for line in crd.template(kind).splitlines() if "{{" not in line]
        governed = yaml.load("\n".join(lines), yaml.CSafeLoader)
        assert governed.pop("metadata")["name"] == plain.pop("metadata")["name"]
        assert governed == plain


class Inner(ApiModel):
    """An inner object."""

    size: Annotated[int, Field(gt=0, description="Size.")] = 3
    word: Annotated[str | None, Field(max_length=8, description="Word.")] = None


@rules(Rule("self.inner.size < 9", "inner.size must be below 9"))
class Outer(ApiModel):
    """An outer object."""

    inner: Annotated[Inner, Field(description="Object with defaults.")] = Inner()
    empty: Annotated[tuple[str, ...], Field(description="Empty list.")] = ()
    amount: Annotated[int | str | None, Field(description="Amount.")] = None
    many: Annotated[tuple[Inner, ...], Field(description="Many.")] = (Inner(),)


def test_a_model_becomes_a_structural_schema() -> None:
    inner = {
        "size": {"description": "Size. Default: 3.", "type": "integer", "minimum": 0, "exclusiveMinimum": True},
        "word": {"description": "Word.", "type": "string", "maxLength": 8},
    }
    found = schema_of(Outer, defaults=True)
    assert found["x-kubernetes-validations"] == [
        {"rule": "self.inner.size < 9", "message": "inner.size must be below 9"}
    ]
    fields = found["properties"]
    assert "required" not in found
    assert fields["inner"]["default"] == {}
    assert fields["inner"]["properties"] == {"size": inner["size"] | {"default": 3}, "word": inner["word"]}
    assert fields["empty"] == {
        "description": "Empty list.",
        "type": "array",
        "items": {"type": "string"},
        "x-kubernetes-list-type": "atomic",
    }
    assert fields["amount"] == {"description": "Amount.", "x-kubernetes-int-or-string": True}
    assert fields["many"]["items"]["properties"] == inner


class OtherDefault(ApiModel):
    """Its default for `inner` is not Inner's own."""

    inner: Inner = Inner(size=4)


class OneOfTwo(ApiModel):
    """A union."""

    either: int | float | bool


class Constant(ApiModel):
    """A constant."""

    word: Literal["a"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (OtherDefault, "OtherDefault.inner.size: default 4 differs from the field's own"),
        (OneOfTwo, "OneOfTwo.either: not allowed in a CRD: anyOf"),
        (Constant, "Constant.word: not allowed in a CRD: const"),
    ],
)
def test_what_a_crd_cannot_say_raises(model: type[ApiModel], words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        schema_of(model, defaults=True)
