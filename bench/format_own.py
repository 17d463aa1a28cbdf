"""Models of the formats that the project's own environment reads, out of wheels. `bench/format_cases.py` imports this late."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from bench import model_data as data
from bench import models
from bench.format_case import Answers, Arrays, Brought
from bench.model_catalog import CASES, RESEMBLYZER
from bench.wheels import unpack

# The architecture to which the weights of Resemblyzer belong: its own module imports what records and cuts sound.
ENCODER = '''"""A speaker's voice as a vector."""

import torch


class VoiceEncoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = torch.nn.Linear(256, 256)
        # Of its training, and in its file.
        self.similarity_weight = torch.nn.Parameter(torch.zeros(1))
        self.similarity_bias = torch.nn.Parameter(torch.zeros(1))

    def forward(self, mels):
        _, (hidden, _) = self.lstm(mels)
        raw = torch.relu(self.linear(hidden[-1]))
        return raw / torch.linalg.vector_norm(raw, dim=1, keepdim=True)
'''


def _catalogued(
    name: str, folder: Path, work: Path, framework: Callable[[Path], Callable[[Arrays], Answers]]
) -> Brought:
    """A case of the bench of other people's models."""
    case = CASES[name]
    path = models.bring(case, work)
    shutil.copy(path, folder)
    assert case.items is not None
    source, evaluation = {"inputs": list(case.inputs)}, {"metric": case.metric, **case.judged}
    return Brought(
        path.name, case.items(case.count, work), framework(folder / path.name), source=source, evaluation=evaluation
    )


def _onnx(path: Path) -> Callable[[Arrays], Answers]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda item: dict(zip(names, session.run(names, dict(item)), strict=True))


def _module(module: torch.nn.Module) -> Callable[[Arrays], Answers]:
    def answers(item: Arrays) -> Answers:
        with torch.no_grad():
            found = module(*(torch.from_numpy(array) for array in item.values()))
        return [tensor.numpy() for tensor in (found if isinstance(found, tuple | list) else (found,))]

    return answers


def magika(folder: Path, work: Path) -> Brought:
    """The kind of a file by its bytes."""
    return _catalogued("magika", folder, work, _onnx)


def crepe(folder: Path, work: Path) -> Brought:
    """The pitch of a sound, traced."""
    return _catalogued("torch-crepe-tiny", folder, work, lambda path: _module(torch.jit.load(path)))


def resemblyzer_program(folder: Path, work: Path) -> Brought:
    """The voice of a speaker, exported."""
    return _catalogued(
        "torch-resemblyzer-program", folder, work, lambda path: _module(torch.export.load(path).module())
    )


def resemblyzer_weights(folder: Path, work: Path) -> Brought:
    """The same as a checkpoint with its weights, and code that makes the module."""
    file = unpack(RESEMBLYZER, work) / "resemblyzer" / "pretrained.pt"
    shutil.copy(file, folder / "pretrained.pt")
    (folder / "code").mkdir()
    (folder / "code" / "voice.py").write_text(ENCODER)
    source = {
        "trusted": True,
        "factory": {"uri": "code", "callable": "voice:VoiceEncoder", "key": "model_state"},
        "inputs": [{"name": "mels", "dtype": "FP32", "shape": ["N", 160, 40]}],
    }
    return Brought(
        "pretrained.pt",
        {"mels": data.mels(16000, 160, 100, 40)},
        _module(_encoder(folder)),
        source=source,
        evaluation={"metric": "Embedding"},
    )


def _encoder(folder: Path) -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("voice", folder / "code" / "voice.py")
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    module: torch.nn.Module = code.VoiceEncoder()
    module.load_state_dict(torch.load(folder / "pretrained.pt", map_location="cpu", weights_only=True)["model_state"])
    return module.eval()
