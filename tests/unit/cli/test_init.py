"""`fettle init`: manifests that a cluster takes, with what the model and its items show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from tests.data import models
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.modeldeployment import ModelDeploymentSpec
from fettle.api.vocabulary import Metric
from fettle.cli.local.manifests import read
from fettle.cli.main import main
from fettle.cli.views.starter import Starter, addresses
from fettle.optimizer.onnx.session import session

IMAGES = np.random.default_rng(5).normal(size=(120, 1, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Starter:
    """Of a classifier with labels."""
    bench = Workbench(tmp_path_factory.mktemp("init"))
    path = bench.put(models.dynamic_batch())
    unlabelled = bench.prepare(bench.task(evaluation=EvaluationSpec(uri=bench.data("items", image=IMAGES))))
    opened = session(path, unlabelled.signature)
    labels = opened.infer({"image": IMAGES})["scores"].argmax(1)
    opened.close()
    given = EvaluationSpec(uri=bench.data("labelled", image=IMAGES, labels=labels))
    report = bench.prepare(bench.task(evaluation=given))
    document: dict[str, Any] = {
        "apiVersion": "fettle.dev/v1alpha1",
        "kind": "OptimizedModel",
        "spec": {
            "source": {"uri": "model.onnx"},
            "data": {"evaluation": {"uri": "items.npz", "metric": "Auto"}},
            "targets": [{"name": "cpu", "runtimes": ["onnxruntime", "openvino"], "threads": 2}],
        },
    }
    return Starter(
        "small", "models", document, addresses("small", "models", ["model.onnx", "items.npz"]), report, "fettle init"
    )


def accepted(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both manifests, once the rules of the API took them."""
    first, second = yaml.safe_load_all(text)
    read(yaml.safe_dump(first), "model.yaml", Path("/"))
    ModelDeploymentSpec.model_validate(second["spec"])
    return first, second


def test_both_manifests_are_taken_and_say_what_was_found(starter: Starter) -> None:
    text = starter.text()
    model, deployment = accepted(text)
    spec = model["spec"]
    assert spec["source"] == {"uri": "pvc://models/small/model.onnx", "sha256": starter.report.source.sha256}
    assert spec["data"]["evaluation"] == {"uri": "pvc://models/small/items.npz", "metric": "Accuracy"}
    assert spec["targets"] == [{"name": "cpu", "runtimes": ["onnxruntime", "openvino"], "threads": 2}]
    assert spec["constraints"] == {"accuracy": {"maxDrop": 0.01}}
    assert deployment["spec"]["model"] == {"ref": {"name": "small", "target": "cpu"}}
    assert "agreement" in deployment["spec"]["rollout"]["analysis"]
    for told in (
        "#   input    image FP32 [batch, 1, 16, 16]",
        "#   output   scores FP32 [batch, 4]",
        "#   items    96 to evaluate; labels are class indices",
        "#   fettle push model.onnx pvc://models/small/model.onnx --create",
        "at least 381 are needed, there are 96",
    ):
        assert told in text


def test_where_there_are_enough_items_to_prove_the_bound_their_number_is_told(starter: Starter) -> None:
    items = starter.report.items.model_copy(update={"items": 720})
    text = replace(starter, report=starter.report.model_copy(update={"items": items})).text()
    assert "with 95 % confidence; 720 items can prove this (at least 381 are needed)" in text


def test_the_deployment_says_what_its_pods_request_and_how_to_request_less(starter: Starter) -> None:
    text = starter.text()
    assert "replicas: 3  # each pod requests and may use 2 CPU and 1Gi" in text
    _, deployment = accepted(text.replace("  # server: ", "  server: "))
    resources = deployment["spec"]["server"]["resources"]
    assert resources["requests"] == {"cpu": "200m", "memory": "512Mi"}
    assert resources["limits"] == {"cpu": "2", "memory": "512Mi"}


def test_where_live_answers_cannot_be_compared_no_agreement_is_asked_and_a_drop_in_labels_is_left_to_the_user(
    starter: Starter,
) -> None:
    report = starter.report.model_copy(update={"metric": Metric.REGRESSION})
    model, deployment = accepted(replace(starter, report=report).text())
    assert model["spec"]["data"]["evaluation"]["metric"] == "Regression"
    assert "constraints" not in model["spec"]
    assert "agreement" not in deployment["spec"]["rollout"]["analysis"]


def test_without_items_nothing_is_said_of_accuracy(starter: Starter) -> None:
    spec = {key: value for key, value in starter.document["spec"].items() if key != "data"}
    report = starter.report.model_copy(update={"generated": True, "metric": None})
    text = replace(starter, document={**starter.document, "spec": spec}, report=report).text()
    model, _ = accepted(text)
    assert model["spec"].keys() == {"source", "targets"}
    assert "Without evaluation items, only exact candidates are chosen" in text


def test_what_is_an_address_already_is_not_pushed(starter: Starter) -> None:
    address = "https://models.example.com/small.onnx"
    source = {"uri": address}
    document = {**starter.document, "spec": {**starter.document["spec"], "source": source}}
    text = replace(starter, document=document, files={**starter.files, address: address}).text()
    assert f"uri: {address}" in text
    assert f"fettle push {address}" not in text


def test_what_was_said_of_weights_goes_into_the_manifest(starter: Starter) -> None:
    inputs = [{"name": "image", "dtype": "FP32", "shape": ["N", 1, 16, 16]}]
    source = {
        "uri": "weights.pt",
        "trusted": True,
        "factory": {"callable": "nets:create", "uri": "nets"},
        "inputs": inputs,
    }
    document = {**starter.document, "spec": {**starter.document["spec"], "source": source}}
    files = addresses("small", "models", ["weights.pt", "items.npz", "nets"])
    text = replace(starter, document=document, files=files).text()
    model, _ = accepted(text)
    factory = {"callable": "nets:create", "uri": "pvc://models/small/nets"}
    told = {"uri": "pvc://models/small/weights.pt", "sha256": starter.report.source.sha256}
    assert model["spec"]["source"] == {**told, "trusted": True, "factory": factory, "inputs": inputs}
    assert "fettle push nets pvc://models/small/nets --create" in text
    assert "- 'N'" in text, "which YAML of Kubernetes reads as false without quotes"


def test_without_a_model_the_error_shows_a_command_of_init() -> None:
    result = CliRunner().invoke(main, ["init"])
    assert result.exit_code == 2
    assert "as in `fettle init model.onnx --evaluation items.npz`" in result.output


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    there = tmp_path / "model.yaml"
    there.write_text("mine")
    result = CliRunner().invoke(main, ["init", "model.onnx", "-o", str(there)])
    assert result.exit_code != 0 and "already exists: choose another file" in result.output
    assert there.read_text() == "mine"


def test_a_model_that_cannot_be_read_ends_with_its_reason(tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"no model at all")
    result = CliRunner().invoke(main, ["init", str(broken)])
    assert result.exit_code == 1
    assert "SourceCorrupted" in result.output or "UnsupportedFormat" in result.output, result.output
