"""The command line of `fettle optimize`: what it refuses, what it shows, and what its exit status says."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console
from tests.unit.cli.test_manifests import SPEC, document, text
from tests.unit.plan.optimize.world import World, fails, failure, make_spec

from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.reasons import Reason
from fettle.api.vocabulary import CandidateState
from fettle.cli.commands.optimize import _json, show
from fettle.cli.local.manifests import read
from fettle.cli.local.model_options import name_of
from fettle.cli.local.model_run import next_generation
from fettle.cli.local.mounts import parse_maps, places, with_parallelism
from fettle.cli.main import main
from fettle.cli.views.cost import cost_lines
from fettle.cli.views.progress import PIPE_WIDTH, LiveDisplay, PlainDisplay, candidates_table, size, stage_line
from fettle.errors import UsageError


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(main, ["version"])
    assert result.output.startswith("fettle 0.")


REFUSED = [
    (
        "neither a model nor a manifest",
        [],
        "no model given: name a file, as in `fettle optimize model.onnx --evaluation items.npz`, or a manifest with -f",
    ),
    ("a model and a manifest", ["model.onnx", "-f", "om.yaml"], "give either a MODEL or a manifest with -f, not both"),
    (
        "an option that a manifest has itself",
        ["-f", "om.yaml", "--max-drop", "0.1"],
        "--max-drop can only be used with MODEL",
    ),
    ("a manifest for a model", ["om.yaml"], "om.yaml looks like a manifest: fettle optimize -f om.yaml"),
    ("a model that is not there", ["nowhere.onnx"], "nowhere.onnx does not exist"),
    ("items that are not there", ["om.onnx", "--evaluation", "nowhere.npz"], "nowhere.npz does not exist"),
    (
        "labels of nothing",
        ["om.onnx", "--label-key", "y"],
        "--label-key needs evaluation items: add --evaluation FILE",
    ),
    ("more than all that may be lost", ["om.onnx", "--max-drop", "5"], "5.0 is not in the range 0<=x<=1"),
    ("a file that is not there", ["-f", "nowhere.yaml"], "cannot read nowhere.yaml"),
    ("a claim without a folder", ["-f", "om.yaml"], "map the claim to a local folder: --map pvc://models=FOLDER"),
    ("a map that is none", ["-f", "om.yaml", "--map", "models=."], "expected pvc://CLAIM=FOLDER"),
    ("a map to nowhere", ["-f", "om.yaml", "--map", "pvc://models=./nowhere"], "nowhere does not exist"),
    (
        "a store that is a file",
        ["-f", "om.yaml", "--store", "om.yaml"],
        "om.yaml: File exists; choose another folder with --store",
    ),
    ("a store where none can be", ["-f", "om.yaml", "--store", "/proc/store"], "cannot write to the store /proc/store"),
    ("an unknown field", ["-f", "bad.yaml"], "bad.yaml: spec.sauce: unknown field"),
]


@pytest.mark.parametrize(("what", "arguments", "message"), REFUSED, ids=[line[0] for line in REFUSED])
def test_a_wrong_command_line_is_one_clear_line_and_status_2(
    what: str, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("om.yaml").write_text(text())
    Path("bad.yaml").write_text(text(sauce=1))
    Path("om.onnx").write_bytes(b"")
    result = CliRunner().invoke(main, ["optimize", *arguments])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_the_default_store_is_a_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = places(make_spec(), parse_maps([f"pvc://models={tmp_path}"]), None)
    assert found.store == "pvc://fettle-store"
    assert found.local("pvc://fettle-store/blobs") == str(tmp_path / "fettle-store" / "blobs")


STORES = [
    ("a claim that is mapped", "pvc://models/store", None, "pvc://models/store", "store"),
    ("a claim that is not mapped", "pvc://team", None, "pvc://team", "fettle-store"),
    ("a folder", "STORE", None, "file://", "mine"),
    ("the command line wins", "pvc://models/store", "other", "pvc://fettle-store", "other"),
]


@pytest.mark.parametrize(("what", "uri", "option", "store", "folder"), STORES, ids=[line[0] for line in STORES])
def test_where_the_store_lies(
    what: str, uri: str, option: str | None, store: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    address = (tmp_path / "mine").as_uri() if uri == "STORE" else uri
    spec = make_spec(store={"uri": address})
    found = places(spec, {"models": tmp_path}, Path(option) if option else None)
    assert found.store.startswith(store)
    assert found.local(found.store) == str(tmp_path / folder)


def test_parallelism_may_be_said_on_the_command_line() -> None:
    assert with_parallelism(make_spec(), 7).search.parallelism == 7
    assert with_parallelism(make_spec(search={}), None).search.parallelism == 2


def test_one_run_never_overwrites_the_report_of_another(tmp_path: Path) -> None:
    (manifest,) = read(text(), "-", tmp_path).models
    found = places(manifest.spec, {"models": tmp_path}, tmp_path)
    assert next_generation(found, manifest) == 1
    reports = tmp_path / "reports" / "default" / "digits"
    reports.mkdir(parents=True)
    for name in ("1.html", "9.html", "notes.html"):
        (reports / name).touch()
    assert next_generation(found, manifest) == 10


def shown(world: World, tmp_path: Path) -> str:
    """The final output of a run."""
    (manifest,) = read(text(), "-", tmp_path).models
    found = places(manifest.spec, {"models": tmp_path}, tmp_path / "store")
    out = io.StringIO()
    show(Console(file=out, width=PIPE_WIDTH), manifest, found, world.status)
    return out.getvalue()


def test_the_result_names_figures_reasons_artifact_and_report(tmp_path: Path) -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001), "int8-onnxruntime": (0.5, 0.2)})
    world.settle()
    told = shown(world, tmp_path)
    assert "digits: Published: cpu: int8-openvino" in told
    (line,) = [line for line in told.splitlines() if line.startswith("int8-openvino ")]
    figures = "int8-openvino 2.000 3.00 [2.91, 3.09] 0.0010 [-0.0010, 0.0030] 300 B Selected"
    assert " ".join(line.split()) == figures
    assert "int8-onnxruntime: accuracy drop 0.2 [0.198, 0.202] must not exceed 0.02" in told
    assert f"artifact  cpu: int8-openvino in openvino, 300 B  {tmp_path}/store/artifacts/" in told
    assert f"report    {tmp_path}/store/reports/team/digits/1.html" in told


def test_the_headline_warns_of_an_unsteady_clock_and_claims_the_lower_end(tmp_path: Path) -> None:
    world = World(speeds={"int8-openvino": (1712.0, 0.001)})
    world.settle()
    (measured,) = [row for row in world.status.candidates if row.name == "int8-openvino"]
    unsteady = measured.model_copy(update={"state": CandidateState.REJECTED, "reason": Reason.MEASUREMENT_UNSTABLE})
    world = World(rows_instead={"int8-openvino": unsteady})
    world.settle()
    headline = "cpu: int8-openvino, at least 1,660 times as fast as the original (the timing was unsteady: 1,710 [1,660, 1,760])"
    assert headline in shown(world, tmp_path).splitlines()[0]


def test_a_run_that_published_nothing_says_why(tmp_path: Path) -> None:
    world = World(answer=fails("prepare", failure(Reason.SOURCE_NOT_FOUND, "no such file")))
    world.settle()
    told = shown(world, tmp_path).splitlines()
    assert told == ["digits: SourceNotFound: no such file", f"logs      {tmp_path}/store/logs/digits"]


def test_json_is_the_object_with_its_status() -> None:
    world = World()
    world.settle()
    manifest = read(yaml.safe_dump(document(**SPEC)), "-", Path("/")).models[0]
    one = json.loads(_json([(manifest, world.status)]))
    assert one["kind"] == "OptimizedModel"
    assert one["status"]["conditions"][0]["reason"] == "Published"
    two = json.loads(_json([(manifest, world.status)] * 2))
    assert (two["kind"], len(two["items"])) == ("List", 2)


def test_plain_lines_tell_what_changes_once() -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001)})
    out = io.StringIO()
    with PlainDisplay(Console(file=out, width=300), "digits") as display:
        for _ in range(12):
            decision = world.look()
            display.update(decision, decision.requests)
            world.finish()
    lines = out.getvalue().splitlines()
    assert len(lines) == len(set(lines))
    assert any("Optimizing: 0 of 5 builds done" in line for line in lines)
    assert any("cpu/int8-openvino: Selected" in line for line in lines)
    assert all(line.startswith("[0:0") for line in lines)


def test_while_nothing_changes_a_plain_line_tells_now_and_then_what_runs() -> None:
    world, out, now = World(), io.StringIO(), [0.0]
    with PlainDisplay(Console(file=out, width=300), "digits", clock=lambda: now[0]) as display:
        decision = world.look()
        display.update(decision, decision.requests)
        told = tuple(replace(task, label=f"{task.label}: 3 of 9 files copied") for task in decision.requests)
        for now[0] in (10.0, 30.0, 40.0, 70.0):
            display.update(decision, told)
    assert [line for line in out.getvalue().splitlines() if "files copied" in line] == [
        "[0:30] digits: prepare: 3 of 9 files copied",
        "[1:10] digits: prepare: 3 of 9 files copied",
    ]


def test_how_a_run_ended_is_told_by_its_result_and_not_twice() -> None:
    world, out = World(answer=fails("prepare", failure(Reason.SOURCE_NOT_FOUND, "no such file"))), io.StringIO()
    with PlainDisplay(Console(file=out, width=300), "digits") as display:
        for _ in range(3):
            decision = world.look()
            display.update(decision, decision.requests)
            world.finish()
    assert decision.finished and "no such file" in stage_line(decision.status)
    assert "no such file" not in out.getvalue()


def test_the_picture_holds_stage_tasks_and_candidates() -> None:
    world = World()
    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    display = LiveDisplay(console, "digits")
    console.print(display._picture())
    for _ in range(2):
        decision = world.look()
        display.update(decision, decision.requests)
        world.finish("prepare")
    console.print(display._picture())
    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    assert "Optimizing: 0 of 5 builds done" in told
    assert "build int8-openvino" in told
    assert "float32-openvino-static" in told


def test_a_narrow_terminal_gets_the_points_without_their_intervals() -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001)})
    world.settle()
    out = io.StringIO()
    console = Console(file=out, width=100)
    console.print(candidates_table(world.status, console.width))
    (line,) = [line for line in out.getvalue().splitlines() if line.startswith("int8-openvino ")]
    assert line.split() == ["int8-openvino", "2.000", "3.00", "0.0010", "300", "B", "Selected"]


def test_an_original_that_is_only_timed_is_the_first_row_of_its_target() -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001)})
    world.settle()
    others = tuple(row for row in world.status.candidates if row.name != "original")
    out = io.StringIO()
    status = world.status.model_copy(update={"candidates": others})
    Console(file=out, width=200).print(candidates_table(status, 200))
    first = out.getvalue().splitlines()[1]
    assert first.split()[:5] == ["original", "6.000", "none", "1.00", "kB"]
    assert "only timed: onnxruntime is not among the runtimes" in first


def test_an_original_that_is_a_candidate_has_one_row() -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001)})
    world.settle()
    out = io.StringIO()
    Console(file=out, width=200).print(candidates_table(world.status, 200))
    assert sum(line.startswith("original ") for line in out.getvalue().splitlines()) == 1


@pytest.mark.parametrize(
    ("number", "expected"), [(None, ""), (999, "999 B"), (1930000, "1.93 MB"), (5 * 10**12, "5000.00 GB")]
)
def test_sizes(number: int | None, expected: str) -> None:
    assert size(number) == expected


def test_a_relative_path_without_a_claim_needs_no_map(tmp_path: Path) -> None:
    (manifest,) = read(text(source={"uri": "m.onnx"}), "-", tmp_path).models
    assert places(manifest.spec, {}, tmp_path / "s").spec.source.uri == (tmp_path / "m.onnx").as_uri()
    with pytest.raises(UsageError, match=r"data.evaluation.uri"):
        places(make_spec(source={"uri": "file:///m.onnx"}), {}, tmp_path / "s")


def test_options_stand_for_the_manifest_that_they_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("My Model.v2.onnx").write_bytes(b"")
    Path("items.npz").write_bytes(b"")
    options = [
        "--evaluation",
        "items.npz",
        "--label-key",
        "y",
        "--metric",
        "F1",
        "--max-drop",
        "0.02",
        "--threads",
        "2",
    ]
    options += ["--runtime", "openvino", "--batch-size", "4", "--objective", "Throughput"]
    result = CliRunner().invoke(main, ["optimize", "My Model.v2.onnx", *options, "-o", "yaml"])
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(result.output) == {
        "apiVersion": "fettle.dev/v1alpha1",
        "kind": "OptimizedModel",
        "metadata": {"name": "my-model-v2"},
        "spec": {
            "source": {"uri": "My Model.v2.onnx"},
            "data": {"evaluation": {"uri": "items.npz", "labelKey": "y", "metric": "F1"}},
            "targets": [{"name": "cpu", "runtimes": ["openvino"], "threads": 2, "batchSizes": [4]}],
            "objective": "Throughput",
            "constraints": {"accuracy": {"maxDrop": 0.02}},
        },
    }


def test_the_printed_manifest_is_one_that_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(b"")
    result = CliRunner().invoke(main, ["optimize", "net.onnx", "-o", "yaml"])
    (manifest,) = read(result.output, "net.yaml", tmp_path).models
    assert manifest.name == "net"
    assert manifest.spec.source.uri == (tmp_path / "net.onnx").as_uri()
    assert manifest.spec.data.evaluation is None


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a/B_c.pt2", "b-c"),
        ("saved model/", "saved-model"),
        ("digits/first/model.onnx", "first"),
        ("___", "model"),
        ("hf://org/Small-Net@main", "small-net"),
        ("hf://org/net@v1.0/onnx/model.onnx", "onnx"),
        ("oci://registry:5000/team/Small-Net:v1.0", "small-net"),
        ("oci://registry/team/net@sha256:0abc/onnx/model.onnx", "onnx"),
        ("mlflow://digits/3", "digits"),
        ("mlflow://digits@champion/model.onnx", "digits"),
    ],
)
def test_a_model_is_named_after_its_file(file: str, name: str) -> None:
    assert name_of(file) == name


def test_a_price_tells_what_a_million_predictions_cost() -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001)})
    world.settle()
    (line,) = cost_lines(world.status, 0.36)
    winner = next(row for row in world.status.candidates if row.name == "int8-openvino")
    (then,), (now,) = world.status.baselines[0].measurements, winner.measurements
    assert then.items_per_second < now.items_per_second
    before, after = (100 / measured.items_per_second for measured in (then, now))
    assert line == f"cost      cpu: a million predictions cost {after:.3g} instead of {before:.3g}"
    assert list(cost_lines(OptimizedModelStatus(), 0.36)) == []


def test_weights_their_factory_and_their_inputs_are_told_by_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("weights.pt", "nets.py"):
        Path(name).write_bytes(b"")
    options = ["--factory", "nets:create", "--factory-code", "nets.py", "--trusted", "--input", "image:FP32:N,3,-1,8"]
    result = CliRunner().invoke(main, ["optimize", "weights.pt", *options, "--input", "t:0:INT64:", "-o", "yaml"])
    assert result.exit_code == 0, result.output
    assert "- 'N'\n" in result.output, "which YAML of Kubernetes reads as false without quotes"
    assert yaml.safe_load(result.output)["spec"]["source"] == {
        "uri": "weights.pt",
        "trusted": True,
        "factory": {"callable": "nets:create", "uri": "nets.py"},
        "inputs": [
            {"name": "image", "dtype": "FP32", "shape": ["N", 3, -1, 8]},
            {"name": "t:0", "dtype": "INT64", "shape": []},
        ],
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--factory", "nets:create"], "--factory MODULE:CALLABLE and --factory-code PATH belong together"),
        (["--factory-code", "nets.py"], "nets.py does not exist"),
        (["--input", "image"], "--input image: expected NAME:DTYPE:SIZES"),
    ],
)
def test_options_that_say_half_of_it_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.pt").write_bytes(b"")
    result = CliRunner().invoke(main, ["optimize", "weights.pt", *options, "-o", "yaml"])
    assert result.exit_code == 2
    assert said in result.output
