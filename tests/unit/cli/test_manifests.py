"""YAML is read as strictly as a cluster reads it, and every fault is named with its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fettle.cli.local.manifests import read
from fettle.errors import UsageError

ROOT = Path(__file__).parents[3]
SPEC: dict[str, Any] = {"source": {"uri": "pvc://models/m.onnx"}, "targets": [{"name": "cpu"}]}


def text(**fields: Any) -> str:
    """An OptimizedModel with some fields of its spec replaced."""
    return yaml.safe_dump(document(**fields))


def document(**fields: Any) -> dict[str, Any]:
    """The same as an object."""
    spec = {**SPEC, **fields}
    return {"apiVersion": "fettle.dev/v1alpha1", "kind": "OptimizedModel", "metadata": {"name": "digits"}, "spec": spec}


FAULTS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("an unknown field", {"sauce": 1}, ["spec.sauce: unknown field"]),
    ("an unknown field deep inside", {"targets": [{"name": "cpu", "thread": 2}]}, ["spec.targets[0].thread: unknown field"]),
    ("a field in another language's case", {"constraints": {"accuracy": {"max_drop": 0.1}}}, ["spec.constraints.accuracy.max_drop: unknown field"]),
    ("two at once", {"a": 1, "b": 2}, ["spec.a: unknown field", "spec.b: unknown field"]),
    ("a missing field", {"source": {}}, ["spec.source.uri: field required"]),
    ("a field by a wrong name", {"source": {}, "targetz": []}, ["spec.source.uri: field required", "spec.targetz: unknown field"]),
    ("a word where a number stands", {"targets": [{"name": "cpu", "threads": "2"}]}, ["spec.targets[0].threads: must be of type integer, found '2'"]),
    ("a word that is not in the list", {"objective": "Speed"}, ["spec.objective", "must be one of ['Latency', 'Throughput', 'Size'], found 'Speed'"]),
    ("a number out of bounds", {"search": {"parallelism": 0}}, ["spec.search.parallelism: must be greater than or equal to 1, found 0"]),
    ("no targets", {"targets": []}, ["spec.targets: must have at least 1 items"]),
    ("a step without a key", {"recipes": [{"name": "r", "steps": [{}]}]}, ["spec.recipes[0].steps[0]: a step must have exactly one key"]),
    ("a step with two keys", {"recipes": [{"name": "r", "steps": [{"optimizeGraph": {}, "quantize": {"mode": "Dynamic"}}]}]},
     ["a step must have exactly one key"]),
    ("static quantization without data", {"recipes": [{"name": "r", "steps": [{"quantize": {"mode": "Static"}}]}]},
     ["spec: static quantization needs data.calibration, data.evaluation or data.generated.allowLossy"]),
    ("items made up beside real ones", {"data": {"generated": {"samples": 100}, "evaluation": {"uri": "e.npz"}}},
     ["spec.data: data.generated and data.evaluation are mutually exclusive: set only one of them"]),
    ("fewer cores than threads", {"targets": [{"name": "cpu", "threads": 2, "resources": {"limits": {"cpu": "1500m"}}}]},
     ["spec.targets[0]: resources.limits.cpu must be at least threads"]),
    ("a name that stands twice", {"targets": [{"name": "cpu"}, {"name": "cpu"}]}, ['spec.targets[1]: duplicate value {"name": "cpu"}']),
    ("an address of another world", {"source": {"uri": "ftp://host/m.onnx"}}, ["spec.source: source.uri must be pvc://CLAIM/PATH"]),
    ("weights without the code of their module", {"source": {"uri": "w.pt", "format": "TorchModule"}},
     ["spec.source: source.format TorchModule needs source.factory"]),
    ("a factory for what is no weights", {"source": {"uri": "m.onnx", "format": "ONNX", "factory": {"callable": "nets:create", "uri": "nets.py"}}},
     ["spec.source: source.factory is for the weights of a PyTorch module"]),
    ("a factory that is no callable", {"source": {"uri": "w.pt", "factory": {"callable": "nets.py", "uri": "nets.py"}}},
     ["spec.source.factory.callable: must match"]),
    ("a factory of another world", {"source": {"uri": "w.pt", "factory": {"callable": "nets:create", "uri": "ftp://host/nets.whl"}}},
     ["spec.source.factory: source.factory.uri must be pvc://CLAIM/PATH, a wheel, a folder or a Python file"]),
    ("a loss of one's own without its code", {"recipes": [{"name": "r", "train": {"loss": "Custom"}}]},
     ["spec.recipes[0].train: train.custom is required with loss: Custom, and only allowed with it"]),
    ("code of a loss that another one is asked for", {"recipes": [{"name": "r", "train": {"custom": {"code": "x"}}}]},
     ["spec.recipes[0].train: train.custom is required with loss: Custom, and only allowed with it"]),
    ("a loss with code and an address", {"recipes": [{"name": "r", "train": {"loss": "Custom", "custom": {"code": "x", "uri": "l.py"}}}]},
     ["spec.recipes[0].train.custom: train.custom needs either uri or code"]),
    ("bounds the wrong way round", {"source": {"uri": "m.onnx", "inputs": [{"name": "x", "range": {"min": 2, "max": 1}}]}},
     ["spec.source.inputs[0].range: range.min must not be greater than range.max"]),
    ("a quantity that is none", {"targets": [{"name": "cpu", "resources": {"limits": {"cpu": "two"}}}]},
     ["spec.targets[0].resources.limits.cpu: must match ^", "found 'two'"]),
    ("an output that is compared twice", {"data": {"evaluation": {"uri": "e.npz", "agreement": {"outputs": ["y", "y"]}}}},
     ['spec.data.evaluation.agreement.outputs[1]: duplicate value "y"']),
    ("a variable that is set twice", {"jobs": {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}},
     ['spec.jobs.env[1]: duplicate value {"name": "A"}']),
    ("a number that JSON does not have", {"constraints": {"accuracy": {"maxDrop": float("nan")}}},
     ["spec.constraints.accuracy.maxDrop: must be of type number, found nan"]),
]  # fmt: skip


@pytest.mark.parametrize(("what", "fields", "messages"), FAULTS, ids=[line[0] for line in FAULTS])
def test_a_fault_is_named_with_its_path(what: str, fields: dict[str, Any], messages: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        read(text(**fields), "om.yaml", Path("/"))
    assert caught.value.message.startswith("om.yaml")
    for message in messages:
        assert message in caught.value.message


OBJECTS: list[tuple[str, str, str]] = [
    ("not valid YAML", "a: [", "is not valid YAML"),
    ("not an object", "hello", "expected a Kubernetes object"),
    ("nothing of ours", "kind: Pod", "contains no OptimizedModel (found: Pod)"),
    ("nothing at all", "", "(found: nothing)"),
    ("another version", text().replace("v1alpha1", "v2"), "apiVersion: must be fettle.dev/v1alpha1"),
    ("a name that no object may have", text().replace("digits", "a..b"), "metadata.name"),
    ("a name that is too long", text().replace("digits", "a" * 254), "at most 253 characters"),
    ("a document in itself", "kind: OptimizedModel\nspec: &a\n  b: *a\n", "cannot be represented as JSON"),
    ("a number that is none", "kind: OptimizedModel\nspec: !!int abc\n", "is not valid YAML"),
    ("no name", text().replace("name: digits", "labels: {}"), "metadata.name"),
    ("a stray field", text() + "sepc: {}\n", "sepc: unknown field"),
]


@pytest.mark.parametrize(("what", "yaml_text", "message"), OBJECTS, ids=[line[0] for line in OBJECTS])
def test_what_is_no_optimizedmodel_is_refused(what: str, yaml_text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(yaml_text, "om.yaml", Path("/"))
    assert message in caught.value.message


def test_several_documents_are_read_and_other_kinds_left_alone() -> None:
    other = "kind: ModelDeployment\nmetadata: {name: digits}\n"
    found = read("---\n".join(["", text(), other, text(objective="Size")]), "-", Path("/"))
    assert [manifest.name for manifest in found.models] == ["digits", "digits"]
    assert found.others == ("ModelDeployment",)


def test_plain_paths_start_at_the_files_folder() -> None:
    data = {
        "evaluation": {"uri": "data/e.npz"},
        "calibration": {"uri": "pvc://models/c.npz"},
        "training": {"uri": "data/t.npz"},
    }
    factory = {"callable": "nets:create", "uri": "code"}
    found = read(
        text(
            source={"uri": "a model.onnx", "factory": factory},
            data=data,
            recipes=[{"name": "r", "train": {"loss": "Custom", "custom": {"uri": "loss.py"}}}],
            store={"uri": "./store"},
        ),
        "om.yaml",
        Path("/home/me"),
    )
    spec = found.models[0].spec
    assert spec.source.uri == "file:///home/me/a%20model.onnx"
    assert spec.source.factory is not None and spec.source.factory.uri == "file:///home/me/code"
    assert spec.data.evaluation is not None
    assert spec.data.evaluation.uri == "file:///home/me/data/e.npz"
    assert spec.data.calibration is not None
    assert spec.data.calibration.uri == "pvc://models/c.npz"
    assert spec.data.training is not None
    assert spec.data.training.uri == "file:///home/me/data/t.npz"
    assert spec.store is not None
    assert spec.store.uri == "file:///home/me/store"
    custom = spec.recipes[0].train.custom
    assert custom is not None and custom.uri == "file:///home/me/loss.py"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*/optimizedmodel*.yaml")), ids=lambda path: path.name)
def test_every_example_is_read(path: Path) -> None:
    assert read(path.read_text(), str(path), path.parent).models


TAKEN: list[tuple[str, str]] = [
    ("a step that may lose answers, on made-up items",
     "data: {generated: {allowLossy: true}}, recipes: [{name: a, steps: [{quantize: {}}]}]"),
    ("null is no value", "data: null, recipes: null"),
    ("a number with an exponent", "constraints: {accuracy: {maxDrop: 1e-3}}"),
    ("a whole number written as another", "search: {parallelism: 2.0}, constraints: {size: {maxBytes: 5e7}}"),
    ("a date where a text stands", "jobs: {annotations: {since: 2026-01-01T00:00:00Z}}"),
    ("cores as a number with a fraction", "targets: [{name: cpu, threads: 2, resources: {limits: {cpu: '2.5'}}}]"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "fields"), TAKEN, ids=[line[0] for line in TAKEN])
def test_what_a_cluster_takes_is_taken_here(what: str, fields: str) -> None:
    whole = {key: value for key, value in document().items() if key != "spec"}
    targets = "" if "targets" in fields else ", targets: [{name: cpu}]"
    spec = f"spec: {{source: {{uri: pvc://models/m.onnx}}{targets}, {fields}}}\n"
    assert read(yaml.safe_dump(whole) + spec, "om.yaml", Path("/")).models
