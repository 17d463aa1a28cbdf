"""Weights and the code that makes their module: prepared and answering as the module does eagerly, or refused with what does not fit."""

from __future__ import annotations

import argparse
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.optimizedmodel import TargetSpec
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.report import PrepareReport
from fettle.api.source import FactorySpec, InputSpec, SourceSpec
from fettle.api.vocabulary import Basis, FormatName, RuntimeName
from fettle.errors import FettleError
from fettle.plan.run.default_plan import default_lines
from fettle.runtimes import base
from fettle.runtimes.base import Array

NETS = Path(__file__).parents[3] / "data" / "eager_nets.py"
IMAGE = InputSpec(name="image", dtype="FP32", shape=("N", 3, 12, 12))


def source(file: str, make: str = "create", code: str = "code", **spec: Any) -> SourceSpec:
    """The source whose weights are `file`; what it says of the factory besides is in `factory`."""
    given = {"callable": f"nets:{make}", "uri": f"pvc://claim/{code}", **spec.pop("factory", {})}
    told: dict[str, Any] = {"trusted": True, "inputs": (IMAGE,), **spec}
    return SourceSpec(uri=f"pvc://claim/{file}", factory=FactorySpec(**given), **told)


@pytest.fixture
def claim(bench: Workbench) -> Workbench:
    """With the nets in the folder `code`."""
    (bench.folder / "code").mkdir()
    shutil.copy(NETS, bench.folder / "code" / "nets.py")
    return bench


def net(make: str = "create", seed: int = 3) -> Any:
    """The net with its weights."""
    from tests.data import eager_nets

    return eager_nets.filled(make, seed)


def save(content: Any, path: Path, *, archive: bool = True) -> None:
    import torch

    torch.save(content, path, _use_new_zipfile_serialization=archive)


def images(size: int = 12, items: int = 6) -> Array:
    return np.random.default_rng(5).standard_normal((items, 3, size, size)).astype(np.float32)


def eager(module: Any, given: Array) -> Array:
    """What the module answers."""
    import torch

    with torch.inference_mode():
        answer = module(torch.from_numpy(given))
    return next(iter(answer.values())).numpy() if isinstance(answer, dict) else answer.numpy()


def answer(bench: Workbench, report: PrepareReport, **given: Array) -> Array:
    """What the portable form answers."""
    entry = bench.store.fetch_model(report.portable, bench.folder / "portable")
    session = base.get(RuntimeName.ONNXRUNTIME).load(entry, RuntimeSettings(threads=1), report.signature)
    (found,) = session.infer(given).values()
    return found


def saved_archive(module: Any, folder: Path) -> str:
    save(module.state_dict(), folder / "weights.pt")
    return "weights.pt"


def saved_as_before(module: Any, folder: Path) -> str:
    save(module.state_dict(), folder / "weights.pth", archive=False)
    return "weights.pth"


def saved_safely(module: Any, folder: Path) -> str:
    from safetensors.torch import save_file

    save_file(module.state_dict(), folder / "weights.safetensors")
    return "weights.safetensors"


def saved_checkpoint(module: Any, folder: Path) -> str:
    import torch

    optimizer = torch.optim.Adam(module.parameters())
    module(torch.zeros(1, 3, 12, 12)).sum().backward()
    optimizer.step()  # so that it has a state, and the module other weights than before
    save({"epoch": 3, "state_dict": module.state_dict(), "optimizer": optimizer.state_dict()}, folder / "last.ckpt")
    return "last.ckpt"


def saved_from_several_gpus(module: Any, folder: Path) -> str:
    import torch

    save({"model": torch.nn.DataParallel(module).state_dict()}, folder / "weights.pt")
    return "weights.pt"


def saved_compiled_in_a_lightning_module(module: Any, folder: Path) -> str:
    save({f"model._orig_mod.{name}": value for name, value in module.state_dict().items()}, folder / "weights.pt")
    return "weights.pt"


SAVERS: list[Callable[[Any, Path], str]] = [
    saved_archive,
    saved_as_before,
    saved_safely,
    saved_checkpoint,
    saved_from_several_gpus,
    saved_compiled_in_a_lightning_module,
]


@pytest.mark.parametrize("saver", SAVERS)
def test_weights_answer_as_their_module_does_eagerly(claim: Workbench, saver: Callable[[Any, Path], str]) -> None:
    module = net()
    file = saver(module, claim.folder)
    evaluation = EvaluationSpec(uri=claim.data("items", image=images(items=40)))
    report = claim.prepare(claim.task(source=source(file), evaluation=evaluation))
    assert (report.source.format, report.basis) == (FormatName.TORCH_MODULE, Basis.PORTABLE_FORM)
    (tensor,), (output,) = report.signature.inputs, report.signature.outputs
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.batch_axis) == ("image", "FP32", (-1, 3, 12, 12), 0)
    assert (output.name, output.batch_axis) == ("output", 0)
    np.testing.assert_allclose(answer(claim, report, image=images()), eager(module, images()), rtol=1e-4, atol=1e-5)


def test_sizes_that_vary_go_through_the_export(claim: Workbench) -> None:
    module = net()
    file = saved_archive(module, claim.folder)
    varying = InputSpec(name="image", dtype="FP32", shape=("N", 3, "H", "W"))
    report = claim.prepare(claim.task(source=source(file, inputs=(varying,))))
    assert report.signature.inputs[0].shape == (-1, 3, -1, -1)
    for size in (5, 30):
        found = answer(claim, report, image=images(size))
        np.testing.assert_allclose(found, eager(module, images(size)), rtol=1e-4, atol=1e-5)


def test_a_weight_that_two_layers_share_is_in_a_file_of_safetensors_once(claim: Workbench) -> None:
    from safetensors.torch import save_model

    module = net("tied")
    save_model(module, str(claim.folder / "tied.safetensors"))
    tokens = InputSpec(name="tokens", dtype="INT64", shape=("N", "T"))
    report = claim.prepare(claim.task(source=source("tied.safetensors", "tied", inputs=(tokens,))))
    assert [tensor.name for tensor in report.signature.outputs] == ["scores"]
    given = np.arange(14, dtype=np.int64).reshape(2, 7)
    np.testing.assert_allclose(answer(claim, report, tokens=given), eager(module, given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", ["create", "half", "wrapped"])
def test_half_precision_is_computed_in_float32_and_a_wrapper_is_taken_off(claim: Workbench, make: str) -> None:
    module = net().half()
    file = saved_archive(module, claim.folder)
    report = claim.prepare(claim.task(source=source(file, make)))
    found = answer(claim, report, image=images())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, eager(module.float(), images()), rtol=1e-4, atol=1e-5)


def wheel(folder: Path) -> str:
    """A package in a wheel."""
    with zipfile.ZipFile(folder / "nets-1.0-py3-none-any.whl", "w") as opened:
        opened.write(NETS, "nets/layers.py")
        opened.writestr("nets/__init__.py", "from nets.layers import create\n")
        opened.writestr("nets-1.0.dist-info/METADATA", "Name: nets\nVersion: 1.0\n")
    return "nets-1.0-py3-none-any.whl"


def script(folder: Path) -> str:
    shutil.copy(NETS, folder / "nets.py")
    return "nets.py"


def beside_the_weights(folder: Path) -> str:
    """One folder with everything, and what is no code."""
    for name in (".git/HEAD", "__pycache__/nets.cpython-311.pyc"):
        (folder / "all" / name).parent.mkdir(parents=True)
        (folder / "all" / name).write_text("nothing that is read")
    shutil.copy(NETS, folder / "all" / "nets.py")
    saved_archive(net(), folder / "all")
    return "all"


@pytest.mark.parametrize("place", [wheel, script, beside_the_weights])
def test_the_code_is_in_a_wheel_a_file_or_beside_the_weights(bench: Workbench, place: Callable[[Path], str]) -> None:
    code = place(bench.folder)
    weights = saved_archive(net(), bench.folder)
    file = code if place is beside_the_weights else weights
    report = bench.prepare(bench.task(source=source(file, code=code)))
    np.testing.assert_allclose(answer(bench, report, image=images()), eager(net(), images()), rtol=1e-4, atol=1e-5)


def test_other_code_is_another_model(claim: Workbench) -> None:
    task = claim.task(source=source(saved_archive(net(), claim.folder)))
    report = claim.prepare(task)
    assert claim.prepare(task) == report
    code = claim.folder / "code" / "nets.py"
    code.write_text(code.read_text().replace("scores * self.scale", "scores * self.scale * 3"))
    other = claim.prepare(task)
    assert other.source.sha256 != report.source.sha256
    np.testing.assert_allclose(answer(claim, other, image=images()), 3 * eager(net(), images()), rtol=1e-4, atol=1e-5)
    pinned = source("weights.pt", sha256=report.source.sha256)
    assert claim.refused(source=pinned).reason == Reason.DIGEST_MISMATCH


def test_of_several_state_dicts_the_key_names_one(claim: Workbench) -> None:
    save({"model": net().state_dict(), "ema": net(seed=4).state_dict()}, claim.folder / "both.pt")
    report = claim.prepare(claim.task(source=source("both.pt", factory={"key": "ema"})))
    np.testing.assert_allclose(
        answer(claim, report, image=images()), eager(net(seed=4), images()), rtol=1e-4, atol=1e-5
    )


def without(module: Any, *names: str) -> dict[str, Any]:
    return {name: value for name, value in module.state_dict().items() if name not in names}


def contents() -> dict[str, Any]:
    """What is saved, by the name of the case."""
    import torch

    module = net()
    state = module.state_dict()
    wider = dict(state) | {"head.weight": torch.zeros(5, 8), "head.bias": torch.zeros(5)}
    return {
        "weights": state,
        "lacking": without(module, "head.bias", "scale"),
        "left over": {**state, "tail.weight": torch.zeros(2)},
        "wider": wider,
        "several": {"model": state, "ema": state},
        "none": {"epoch": 3, "loss": [0.1]},
        "a list": [1, 2],
        "a class": {"state_dict": state, "args": argparse.Namespace(layers=3)},
        "a module": module,
    }


REFUSED: list[tuple[str, str, dict[str, Any], Reason, str]] = [
    ("not trusted", "weights", {"trusted": False}, Reason.UNSAFE_CODE, "set source.trusted: true"),
    ("a class", "a class", {}, Reason.UNSAFE_PICKLE, "needs argparse.Namespace"),
    ("a module", "a module", {}, Reason.UNSAFE_PICKLE, "eager_nets.Net"),
    ("lacking", "lacking", {}, Reason.UNSUPPORTED_MODEL, "it lacks scale and head.bias"),
    ("left over", "left over", {}, Reason.UNSUPPORTED_MODEL, "the module does not know tail.weight"),
    ("another shape", "wider", {}, Reason.UNSUPPORTED_MODEL, "size mismatch for head.weight"),
    ("several", "several", {}, Reason.INVALID_SPEC, "set source.factory.key to model or ema"),
    ("another key", "several", {"factory": {"key": "net"}}, Reason.INVALID_SPEC, "its state dicts are model and ema"),
    ("a key too much", "weights", {"factory": {"key": "model"}}, Reason.INVALID_SPEC, "remove source.factory.key"),
    ("none", "none", {}, Reason.UNSUPPORTED_MODEL, "found a dictionary with the keys epoch and loss"),
    ("a list", "a list", {}, Reason.UNSUPPORTED_MODEL, "found a list"),
    ("unlucky", "weights", {"make": "unlucky"}, Reason.UNSUPPORTED_MODEL, "RuntimeError: no such luck (nets.py, line"),
    ("leaving", "weights", {"make": "leaving"}, Reason.UNSUPPORTED_MODEL, "SystemExit: 3"),
    ("nothing", "weights", {"make": "nothing"}, Reason.UNSUPPORTED_MODEL, "returned a int, expected a torch.nn.Module"),
    ("arguments", "weights", {"make": "sized"}, Reason.INVALID_SPEC, "needs the arguments classes"),
    ("no callable", "weights", {"make": "nowhere"}, Reason.INVALID_SPEC, "has no callable nowhere; it defines Fixed,"),
    ("no module", "weights", {"factory": {"callable": "elsewhere:create"}}, Reason.INVALID_SPEC, "its modules are: nets"),
    ("a name of ours", "weights", {"factory": {"callable": "json:load"}}, Reason.INVALID_SPEC, "contains no module json"),
    ("no inputs", "weights", {"inputs": ()}, Reason.INVALID_SPEC, "must give dtype and shape of image"),
    ("no shape", "weights", {"inputs": (InputSpec(name="image", dtype="FP32"),)}, Reason.INVALID_SPEC, "shape of image"),
    ("another input", "weights", {"inputs": (InputSpec(name="x"),)}, Reason.INVALID_SPEC, "it takes image and plain"),
    ("nameless", "weights", {"make": "nameless"}, Reason.UNSUPPORTED_MODEL, "names no inputs"),
    ("a batch that it fixes", "weights", {"make": "fixed"}, Reason.UNSUPPORTED_MODEL, "fixes the size N to 2"),
    ("no code", "weights", {"code": "nothing.whl"}, Reason.SOURCE_NOT_FOUND, "(source.factory.uri) does not exist"),
    ("no code at all", "weights", {"code": "weights.pt"}, Reason.UNSUPPORTED_FORMAT, "expected a wheel (.whl), a folder"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "saved", "spec", "reason", "words"), REFUSED, ids=[line[0] for line in REFUSED])
def test_what_does_not_fit_is_named(
    claim: Workbench, what: str, saved: str, spec: dict[str, Any], reason: Reason, words: str
) -> None:
    save(contents()[saved], claim.folder / "weights.pt")
    error = refused(claim, "weights.pt", **spec)
    assert (error.reason, words in error.message) == (reason, True), error.message


def refused(bench: Workbench, file: str, **spec: Any) -> FettleError:
    return bench.refused(source=source(file, **spec))


class Touch:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_is_not_run_either_where_the_factory_is_trusted(claim: Workbench, archive: bool) -> None:
    canary = claim.folder / "canary"
    save({"state_dict": net().state_dict(), "hook": Touch(canary)}, claim.folder / "weights.pt", archive=archive)
    error = refused(claim, "weights.pt")
    assert not canary.exists()
    assert (error.reason, "posix.mkdir" in error.message) == (Reason.UNSAFE_PICKLE, True), error.message


def test_a_module_of_the_codes_own_that_is_called_like_one_of_ours_is_refused(claim: Workbench) -> None:
    shutil.copy(NETS, claim.folder / "code" / "json.py")
    file = saved_archive(net(), claim.folder)
    error = refused(claim, file, factory={"callable": "json:create"})
    assert (error.reason, "rename it" in error.message) == (Reason.INVALID_SPEC, True), error.message


def test_a_package_that_is_not_installed_is_named(claim: Workbench) -> None:
    code = claim.folder / "code" / "nets.py"
    code.write_text(f"import nowhere_installed\n{code.read_text().replace('from __future__ import annotations', '')}")
    error = refused(claim, saved_archive(net(), claim.folder))
    assert error.reason == Reason.UNSUPPORTED_MODEL
    assert "No module named 'nowhere_installed'; Jobs have the packages of their image" in error.message


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_weights_that_are_cut_off_are_damaged(claim: Workbench, name: str) -> None:
    file = saved_archive(net(), claim.folder) if name.endswith(".pt") else saved_safely(net(), claim.folder)
    path = claim.folder / file
    path.write_bytes(path.read_bytes()[:-200])
    assert refused(claim, file).reason == Reason.SOURCE_CORRUPTED


@pytest.mark.parametrize(
    ("name", "content", "reason", "words"),
    [
        ("weights.pt", b"nothing that PyTorch wrote", Reason.SOURCE_CORRUPTED, "not a file of weights"),
        ("weights.safetensors", b"nothing that it wrote", Reason.SOURCE_CORRUPTED, "is damaged"),
        ("weights.pt", b"version https://git-lfs.github.com/spec/v1\n", Reason.UNSUPPORTED_FORMAT, "git lfs pull"),
        ("weights.pt", b"", Reason.SOURCE_CORRUPTED, "it is empty"),
    ],
)
def test_a_file_that_is_no_weights_says_what_it_is(
    claim: Workbench, name: str, content: bytes, reason: Reason, words: str
) -> None:
    (claim.folder / name).write_bytes(content)
    error = refused(claim, name)
    assert (error.reason, words in error.message) == (reason, True), error.message


def test_a_whole_model_needs_no_factory(claim: Workbench) -> None:
    from tests.data import torch_models

    torch_models.save_script(torch_models.EXAMPLES["block"], claim.folder / "model.pt")
    error = refused(claim, "model.pt")
    assert error.reason == Reason.INVALID_SPEC
    assert "is TorchScript, a whole model: remove source.factory" in error.message


def test_a_wheel_that_leaves_its_folder_is_not_unpacked(claim: Workbench) -> None:
    with zipfile.ZipFile(claim.folder / "nets.whl", "w") as opened:
        opened.writestr("../evil.py", "")
    error = refused(claim, saved_archive(net(), claim.folder), code="nets.whl")
    assert error.reason == Reason.SOURCE_CORRUPTED
    assert "'../evil.py'" in error.message


def test_code_among_large_files_is_to_have_a_folder_of_its_own(claim: Workbench) -> None:
    with (claim.folder / "code" / "films.bin").open("wb") as stream:
        stream.truncate((64 << 20) + 1)
    error = refused(claim, saved_archive(net(), claim.folder))
    assert error.reason == Reason.INVALID_SPEC
    assert "put the code into a folder of its own" in error.message


def test_the_exported_program_is_kept_where_a_build_of_the_plan_compiles_it(claim: Workbench) -> None:
    module = net()
    file = saved_archive(module, claim.folder)
    (line, *_) = default_lines(frozenset({RuntimeName.INDUCTOR}))
    plan = line.candidate(TargetSpec(name="cpu", threads=1, runtimes=(RuntimeName.INDUCTOR,))).build
    assert plan is not None
    data = {"evaluation": EvaluationSpec(uri=claim.data("items", image=images()))}
    asked = claim.prepare(claim.task(source=source(file), builds=[plan], **data))
    assert asked.native is not None
    assert (asked.native.format, RuntimeName.INDUCTOR in asked.portable_runtimes) == ("TorchExport", True)
    entry = claim.store.fetch_model(asked.native, claim.folder / "native")
    session = base.get(RuntimeName.TORCHSCRIPT).load(
        entry, RuntimeSettings(threads=1, graph_optimization=False), asked.signature
    )
    (found,) = session.infer({"image": images()}).values()
    np.testing.assert_allclose(found, eager(module, images()), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_made_of_a_source_is_tried_once(claim: Workbench, caplog: pytest.LogCaptureFixture) -> None:
    (line, *_) = default_lines(frozenset({RuntimeName.INDUCTOR}))
    plan = line.candidate(TargetSpec(name="cpu", threads=1, runtimes=(RuntimeName.INDUCTOR,))).build
    assert plan is not None
    constant = InputSpec(name="scale", dtype="FP32", shape=(1,), value=2)  # which PyTorch's compiler cannot be told
    spec = source(saved_archive(net("scaled"), claim.folder), "scaled", inputs=(IMAGE, constant))
    data = {"evaluation": EvaluationSpec(uri=claim.data("items", image=images()))}
    caplog.set_level("INFO", "fettle")
    first = claim.prepare(claim.task(source=spec, **data))
    asked = claim.prepare(claim.task(source=spec, builds=[plan], **data))
    assert (first.tried, asked.tried, asked.native) == ((), ("native",), None)
    assert "already prepared" not in caplog.text, "nobody had asked for it before"
    again = claim.prepare(claim.task(source=spec, builds=[plan], **data))
    assert "already prepared" in caplog.text
    assert again.notes == asked.notes and any("inductor" in note for note in again.notes)
