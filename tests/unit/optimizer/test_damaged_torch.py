"""Damaged files of PyTorch: each ends with a reason that is the file's, none with an error of ours, and no file is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from tests.toolchains.damaged import ZIP, Change, changes
from tests.toolchains.preparing import CLAIM, Kind, Preparer, Whole

from fettle.api.source import FactorySpec, InputSpec

pytest.importorskip("torch")

NETS = Path(__file__).parents[2] / "data" / "eager_nets.py"
IMAGE = InputSpec(name="image", dtype="FP32", shape=("N", 3, 12, 12))
FACTORY = FactorySpec(callable="nets:create", uri=f"pvc://{CLAIM}/code/nets.py")
PICKLE = b"\x80\x02"
LONG_HEADER = (100 << 20).to_bytes(8, "little") + b'{"'


def script(folder: Path) -> Whole:
    from tests.data import torch_models

    saved = torch_models.save_script(torch_models.EXAMPLES["convolutional"], folder / "model.pt")
    return Whole({"model.pt": saved.read_bytes()}, "model.pt", ZIP, source={"inputs": (IMAGE,)})


def program(folder: Path) -> Whole:
    from tests.data import torch_models

    saved = torch_models.save_program(torch_models.EXAMPLES["convolutional"], folder / "model.pt2")
    return Whole({"model.pt2": saved.read_bytes()}, "model.pt2", ZIP)


def _weights(path: Path, header: bytes) -> Whole:
    files = {path.name: path.read_bytes(), "code/nets.py": NETS.read_bytes()}
    return Whole(files, path.name, header, source={"inputs": (IMAGE,), "factory": FACTORY, "trusted": True})


def _state() -> Any:
    from tests.data import eager_nets

    return eager_nets.filled("create", 3).state_dict()


def state_dict(folder: Path) -> Whole:
    import torch

    torch.save(_state(), folder / "weights.pt")
    return _weights(folder / "weights.pt", ZIP)


def old_state_dict(folder: Path) -> Whole:
    import torch

    torch.save(_state(), folder / "weights.pth", _use_new_zipfile_serialization=False)
    return _weights(folder / "weights.pth", PICKLE)


def safetensors(folder: Path) -> Whole:
    from safetensors.torch import save_file

    save_file(_state(), folder / "weights.safetensors")
    return _weights(folder / "weights.safetensors", LONG_HEADER)


KINDS = (script, program, state_dict, old_state_dict, safetensors)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_not_whole_is_refused_with_a_reason(preparing: Preparer, kind: Kind) -> None:
    preparing.refuses_forms(kind)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, derandomize=True)
@given(made=changes())
def test_a_changed_file_is_prepared_or_refused_with_a_reason(
    preparing: Preparer, kind: Kind, made: list[Change]
) -> None:
    preparing.refuses_changed(kind, made)
