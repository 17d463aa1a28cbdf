"""A build's key changes with everything that decides its bytes, and with nothing else."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import yaml
from tests.unit.plan.optimize.world import make_spec

from fettle.api.recipe import OptimizeGraphStep, QuantizeStep, RecipeStep
from fettle.api.report import CpuClass, LayerError
from fettle.api.task import BuildPlan, StoredData, StoredFile, StoredModel, TrainingPlan
from fettle.api.training import TrainSpec
from fettle.api.vocabulary import QuantizeMode, QuantizePreset, RuntimeName
from fettle.plan.run.candidates import possible_builds
from fettle.store import cache
from fettle.store.store import Store
from fettle.store.uris import Mounts

ORT, OPENVINO = RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO
VNNI = CpuClass(vendor="GenuineIntel", avx2=True, vnni=True)
OLD = CpuClass(vendor="GenuineIntel", avx2=True)


def portable(digest: str = "a") -> StoredModel:
    return StoredModel(format="ONNX", entry="m", files=(StoredFile(path="m", sha256=digest * 64, bytes=1),))


def calibration(digest: str = "c") -> StoredData:
    return StoredData(sha256=digest * 64, items=4)


def plan(name: str = "int8", family: RuntimeName = ORT, **parameters: object) -> BuildPlan:
    step = RecipeStep(quantize=QuantizeStep.model_validate(parameters))
    return BuildPlan(name=name, family=family, steps=(step,))


BASE = cache.build_key(plan(), portable(), calibration(), VNNI)
GRAPH = BuildPlan(name="graph", family=ORT, steps=(RecipeStep(optimize_graph=OptimizeGraphStep()),))


@pytest.mark.parametrize(
    "other",
    [
        cache.build_key(plan(), portable("b"), calibration(), VNNI),
        cache.build_key(plan(), portable(), calibration("d"), VNNI),
        cache.build_key(plan(), portable(), calibration(), OLD),
        cache.build_key(plan(family=OPENVINO), portable(), calibration(), VNNI),
        cache.build_key(plan(preset=QuantizePreset.TRANSFORMER), portable(), calibration(), VNNI),
        cache.build_key(plan(operators=("Conv",)), portable(), calibration(), VNNI),
        cache.build_key(plan(mode=QuantizeMode.DYNAMIC), portable(), calibration(), VNNI),
        cache.build_key(GRAPH, portable(), calibration(), VNNI),
        cache.build_key(plan(), portable(), calibration(), VNNI, follows="e" * 64),
    ],
)
def test_what_decides_the_bytes_changes_the_key(other: str) -> None:
    assert other != BASE


def test_the_keys_of_the_default_plan_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "version", lambda name: "1.0")
    spec = make_spec(targets=[{"name": "cpu", "runtimes": list(RuntimeName)}])
    keys = {plan.name: cache.build_key(plan, portable(), calibration(), VNNI) for plan in possible_builds(spec)}
    assert keys == yaml.safe_load((Path(__file__).parent / "golden/build-keys.yaml").read_text())


def test_each_architecture_number_format_and_range_of_batches_is_a_build_of_its_own() -> None:
    def keys(architecture: str, sizes: list[int]) -> set[str]:
        device = {"kind": "nvidia", "architecture": architecture}
        engines = [{"name": "gpu", "device": device, "runtimes": ["tensorrt", "tensorrt-rtx"], "batchSizes": sizes}]
        builds = possible_builds(make_spec(targets=engines))
        found = {cache.build_key(build, portable(), calibration(), VNNI) for build in builds}
        assert len(found) == len(builds) == 16, (
            "of each library: four formats, int8 and float8, each of both with float16"
        )
        return found

    devices = [keys("sm89", [1]), keys("sm120", [1]), keys("sm89", [8]), keys("sm89", [1, 8]), keys("sm89", [1, 4, 8])]
    assert len(set().union(*devices)) == 5 * 16
    assert keys("sm89", [8, 1, 8]) == keys("sm89", [1, 8]), "the same profiles"


def test_engines_with_other_profiles_have_other_names() -> None:
    device = {"kind": "nvidia", "architecture": "sm89"}
    sizes = {"one": [8], "two": [1, 8], "three": [1, 4, 8], "turned": [8, 1]}
    targets = [
        {"name": name, "device": device, "runtimes": ["tensorrt-rtx"], "batchSizes": each}
        for name, each in sizes.items()
    ]
    names = [build.name for build in possible_builds(make_spec(targets=targets)) if build.name.startswith("float32")]
    assert names == [f"float32-tensorrt-rtx-float32-sm89-{each}" for each in ("batch8", "batches1-8", "batches1-4-8")]


def test_another_version_of_a_library_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "version", lambda name: "0.0.1")
    assert cache.build_key(plan(), portable(), calibration(), VNNI) != BASE


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # a recipe's name is no part of what it makes
        (BASE, cache.build_key(plan("another"), portable(), calibration(), VNNI)),
        # calibration items do not count where no step looks at them
        (
            cache.build_key(GRAPH, portable(), calibration("c"), VNNI),
            cache.build_key(GRAPH, portable(), calibration("d"), VNNI),
        ),
        # what a build made is known by its key, whatever its files are
        (
            cache.build_key(GRAPH, portable("a"), None, VNNI, follows=BASE),
            cache.build_key(GRAPH, portable("b"), None, VNNI, follows=BASE),
        ),
        # NNCF writes the same on every CPU
        (
            cache.build_key(plan(family=OPENVINO), portable(), calibration(), VNNI),
            cache.build_key(plan(family=OPENVINO), portable(), calibration(), OLD),
        ),
    ],
)
def test_what_decides_nothing_leaves_the_key(one: str, other: str) -> None:
    assert one == other


def student(callable: str) -> BuildPlan:
    step = RecipeStep.model_validate({"distill": {"student": {"callable": callable}}})
    return BuildPlan(name="lean", family=RuntimeName.TORCHSCRIPT, steps=(step,))


def key_of(callable: str) -> str:
    importlib.invalidate_caches()
    return cache.build_key(student(callable), portable(), None, VNNI)


def test_the_code_of_a_student_of_ones_own_is_a_part_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    missing = key_of("own_student:small")
    module = tmp_path / "own_student.py"
    module.write_text("width = 8\n")
    first = key_of("own_student:small")
    module.write_text("width = 4\n")
    assert len({missing, first, key_of("own_student:small"), key_of("own_student:large")}) == 4
    module.write_text("width = 8\n")
    assert key_of("own_student:small") == first


def test_of_a_package_all_modules_are_a_part_of_the_key_and_none_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "own_students"
    (package / "layers").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError\n")
    (package / "small.py").write_text("")
    (package / "layers/block.py").write_text("")
    first = key_of("own_students.small:make")
    (package / "layers/block.py").write_text("width = 4\n")
    assert key_of("own_students.small:make") != first


LOW_RANK = BuildPlan(
    name="thin",
    family=RuntimeName.TORCHSCRIPT,
    steps=(RecipeStep.model_validate({"lowRank": {"rank": 0.5}}),),
    training=TrainingPlan(spec=TrainSpec()),
)


def thin(calibrated: str, items: str | None) -> str:
    learned = cache.Learned(None, calibration(items) if items is not None else None)
    return cache.build_key(LOW_RANK, portable(), calibration(calibrated), VNNI, learned=learned)


def test_a_factorization_depends_on_the_items_that_it_looks_at() -> None:
    assert thin("c", None) != thin("d", None), "there is nothing to train on: calibration items say what goes in"
    assert thin("c", "e") == thin("d", "e") != thin("c", "f")


def test_a_choice_that_is_not_made_is_not_in_the_key() -> None:
    assert not {"loss", "nodes"} & set(TrainSpec().to_json())
    chosen = {"loss": "CTC", "nodes": 2}
    assert chosen.items() <= TrainSpec.model_validate(chosen).to_json().items()


def test_a_build_is_found_only_while_its_files_are_whole(tmp_path: Path) -> None:
    store = Store.open("pvc://claim", Mounts({"claim": tmp_path}))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/model.onnx").write_bytes(b"graph")
    model = store.put_model(tmp_path / "in", "model.onnx")
    assert cache.read_build(store, BASE) is None
    cache.write_build(store, BASE, model)
    assert cache.read_build(store, BASE) == model and cache.layers_of(store, BASE) == ()
    layers = (LayerError(name="Conv.2", layers=3, error=0.25, kept=True),)
    cache.write_build(store, BASE, model, layers)
    assert cache.read_build(store, BASE) == model, "which says nothing of layers: keys are made of it"
    assert cache.layers_of(store, BASE) == layers
    (tmp_path / "blobs" / model.files[0].sha256).unlink()
    assert cache.read_build(store, BASE) is None
