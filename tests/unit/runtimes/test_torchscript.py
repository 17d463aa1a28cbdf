"""torchscript beyond the contract (test_contract.py): eager PyTorch's answers, one number of threads a process, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import RuntimeFailure
from fettle.runtimes import base

AS_IT_CAME = RuntimeSettings(threads=1, graph_optimization=False)
FROZEN = RuntimeSettings(threads=1)
SIGNATURE = Signature(
    inputs=(Tensor(name="left", dtype="FP32", shape=(-1, 6)), Tensor(name="right", dtype="FP32", shape=(-1, 1))),
    outputs=(Tensor(name="output_0", dtype="FP32", shape=(-1, 6)), Tensor(name="output_1", dtype="FP32", shape=(-1,))),
)
IMAGES = Signature(
    inputs=(Tensor(name="image", dtype="FP32", shape=(-1, 3, 12, 12)),),
    outputs=(Tensor(name="output", dtype="FP32", shape=(-1, 4)),),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.data import torch_models

    made = tmp_path_factory.mktemp("torch")
    for name in ("pair", "convolutional"):
        torch_models.save_script(torch_models.EXAMPLES[name], made / f"{name}.pt")
    torch_models.save_program(torch_models.EXAMPLES["pair"], made / "pair.pt2")
    return made


@pytest.fixture
def threads() -> Iterator[None]:
    """The number of threads belongs to the process, and other tests run in this one."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def load(entry: Path, settings: RuntimeSettings = AS_IT_CAME, signature: Signature = SIGNATURE) -> base.Session:
    return base.get(RuntimeName.TORCHSCRIPT).load(entry, settings, signature)


@pytest.mark.parametrize("settings", [AS_IT_CAME, FROZEN])
def test_a_script_answers_as_the_module_in_evaluation_mode(folder: Path, settings: RuntimeSettings) -> None:
    import torch
    from tests.data import torch_models

    image = torch_models.EXAMPLES["convolutional"].inputs["image"]
    session = load(folder / "convolutional.pt", settings, IMAGES)
    assert session.effective_settings() == settings
    wanted = torch_models.module_of(torch_models.EXAMPLES["convolutional"])(torch.from_numpy(image))
    for size in (2, 1, 2):
        found = session.infer({"image": image[:size]})["output"]
        np.testing.assert_allclose(found, wanted[:size].detach().numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [AS_IT_CAME, FROZEN])
def test_an_argument_between_two_tensors_keeps_its_default(tmp_path: Path, settings: RuntimeSettings) -> None:
    import torch
    from tests.data import torch_kinds

    torch_kinds.save_script("Defaults", tmp_path / "model.pt")
    x, mask = np.ones((2, 4), np.float32), np.array([[1, 0, 1], [0, 1, 0]], np.float32)
    inputs = (Tensor(name="x", dtype="FP32", shape=(-1, 4)), Tensor(name="mask", dtype="FP32", shape=(-1, 3)))
    signature = Signature(inputs=inputs, outputs=(Tensor(name="output", dtype="FP32", shape=(-1, 3)),))
    found = load(tmp_path / "model.pt", settings, signature).infer({"x": x, "mask": mask})["output"]
    wanted = torch_kinds.Defaults()(torch.from_numpy(x), mask=torch.from_numpy(mask)).detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("graph_optimization", [False, True])
def test_it_runs_with_as_many_threads_as_asked_and_answers_alike(folder: Path, graph_optimization: bool) -> None:
    import torch

    image = {"image": np.random.default_rng(1).random((2, 3, 12, 12), dtype=np.float32)}
    answers = []
    for count in (2, 1):
        settings = RuntimeSettings(threads=count, graph_optimization=graph_optimization)
        session = load(folder / "convolutional.pt", settings, IMAGES)
        assert session.effective_settings() == settings
        answers.append(session.infer(image)["output"])
        assert torch.get_num_threads() == count, "no run changes it"
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("threads")
def test_a_process_has_one_number_of_threads_and_an_earlier_session_does_not_hide_that(folder: Path) -> None:
    first = load(folder / "pair.pt")
    assert first.effective_settings().threads == 1
    load(folder / "pair.pt", AS_IT_CAME.model_copy(update={"threads": 2}))
    assert first.effective_settings().threads == 2, "not what it was asked for: a new process is needed"


@pytest.mark.parametrize("settings", [AS_IT_CAME, FROZEN])
def test_compute_operators_are_counted(folder: Path, settings: RuntimeSettings) -> None:
    image = {"image": np.ones((1, 3, 12, 12), np.float32)}
    found = base.get(RuntimeName.TORCHSCRIPT).executed(folder / "convolutional.pt", settings, image, IMAGES)
    assert (found.f32, found.total) == (2, 2)  # a convolution and a product


REFUSED = [
    ("bfloat16", "pair.pt", RuntimeSettings(threads=1, precision=Precision.BFLOAT16), Reason.RECIPE_NOT_APPLICABLE),
    ("a static batch", "pair.pt", RuntimeSettings(threads=1, batch_size=2), Reason.RECIPE_NOT_APPLICABLE),
    ("freezing an exported program", "pair.pt2", FROZEN, Reason.RECIPE_NOT_APPLICABLE),
]


@pytest.mark.parametrize(("what", "file", "settings", "reason"), REFUSED, ids=[line[0] for line in REFUSED])
def test_what_it_does_not_offer_is_refused(
    folder: Path, what: str, file: str, settings: RuntimeSettings, reason: Reason
) -> None:
    with pytest.raises(RuntimeFailure) as caught:
        load(folder / file, settings)
    assert caught.value.reason == reason


def test_a_tensor_of_bfloat16_goes_in_and_out() -> None:
    import torch

    from fettle.runtimes.torchscript import to_array, to_tensor

    tensor = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    assert to_array(tensor).dtype.name == "bfloat16"
    assert torch.equal(to_tensor(to_array(tensor)), tensor)
