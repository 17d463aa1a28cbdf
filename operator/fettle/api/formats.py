"""The requirements of each source format: a row for each, as data only. See `catalog.py`."""

from __future__ import annotations

from dataclasses import dataclass

from fettle.api.catalog import PORTABLE_RUNTIME
from fettle.api.uris import MODELS
from fettle.api.vocabulary import FormatName, RuntimeName


@dataclass(frozen=True)
class FormatEntry:
    """A source format: how it is converted to the portable form. `revision` is that of the conversion."""

    format: FormatName
    libraries: tuple[str, ...]
    runtime: RuntimeName  # runs the untouched source, or what it is converted to: the baseline
    suffixes: tuple[str, ...]  # of its files' paths: what tells the image of a source that nobody has looked at yet
    revision: int = 1
    converted: bool = False  # no runtime runs the untouched source
    common: tuple[str, ...] = ()  # suffixes of other files too: in a folder they count where nothing else is a model


# What tables take: scikit-learn, and boosted trees.
TABLES = frozenset({"catboost", "lightgbm", "onnxmltools", "scikit-learn", "skl2onnx", "skops", "xgboost-cpu"})

FORMATS: tuple[FormatEntry, ...] = (
    FormatEntry(FormatName.ONNX, ("onnx", "onnxruntime"), PORTABLE_RUNTIME, (".onnx",), revision=3),
    FormatEntry(
        FormatName.TORCH_SCRIPT,
        ("onnx", "onnxruntime", "torch"),
        RuntimeName.TORCHSCRIPT,
        (".pt", ".pth", ".ts", ".jit", ".torchscript"),
        revision=3,
    ),
    FormatEntry(
        FormatName.TORCH_EXPORT,
        ("onnx", "onnxruntime", "onnxscript", "torch"),
        RuntimeName.TORCHSCRIPT,
        (".pt2",),
        revision=3,
    ),
    # Weights and the code that makes their module. Its files are called like those of other formats: `source.factory` tells it.
    FormatEntry(
        FormatName.TORCH_MODULE,
        ("onnx", "onnxruntime", "onnxscript", "safetensors", "torch"),
        PORTABLE_RUNTIME,
        (),
        converted=True,
    ),
    FormatEntry(
        FormatName.KERAS,
        ("keras", "onnx", "onnxruntime", "tensorflow-cpu", "tf2onnx"),
        PORTABLE_RUNTIME,
        (".keras", ".h5", ".hdf5"),
        converted=True,
    ),
    FormatEntry(
        FormatName.SAVED_MODEL,
        ("onnx", "onnxruntime", "tensorflow-cpu", "tf2onnx"),
        PORTABLE_RUNTIME,
        ("saved_model.pb",),
        converted=True,
    ),
    FormatEntry(
        FormatName.FROZEN_GRAPH,
        ("onnx", "onnxruntime", "tensorflow-cpu", "tf2onnx"),
        PORTABLE_RUNTIME,
        (),
        converted=True,
        common=(".pb",),
    ),
    FormatEntry(
        FormatName.TFLITE,
        ("ai-edge-litert", "onnx", "onnxruntime", "tensorflow-cpu", "tf2onnx"),
        RuntimeName.LITERT,
        (".tflite",),
        revision=2,
    ),
    FormatEntry(
        FormatName.SCIKIT_LEARN,
        ("onnx", "onnxruntime", "scikit-learn", "skl2onnx", "skops"),
        PORTABLE_RUNTIME,
        (".skops", ".joblib", ".pkl", ".pickle"),
        converted=True,
    ),
    FormatEntry(
        FormatName.HUGGING_FACE,
        ("onnx", "onnxruntime", "onnxscript", "torch", "transformers"),
        PORTABLE_RUNTIME,
        (".safetensors",),
        converted=True,
        common=("config.json",),
        revision=3,
    ),
    FormatEntry(
        FormatName.XGBOOST,
        ("onnx", "onnxmltools", "onnxruntime", "xgboost-cpu"),
        PORTABLE_RUNTIME,
        (".ubj",),
        converted=True,
        common=(".json",),
    ),
    FormatEntry(
        FormatName.LIGHTGBM,
        ("lightgbm", "onnx", "onnxmltools", "onnxruntime"),
        PORTABLE_RUNTIME,
        (".lgb",),
        converted=True,
        common=(".txt",),
    ),
    FormatEntry(FormatName.CATBOOST, ("catboost", "onnx", "onnxruntime"), PORTABLE_RUNTIME, (".cbm",), converted=True),
    # A directory that names the model in it, most often one of the four above; for TensorFlow's, source.format names them.
    FormatEntry(
        FormatName.MLFLOW, ("onnx", "onnxruntime", *sorted(TABLES)), PORTABLE_RUNTIME, ("/mlmodel",), converted=True
    ),
)

_FORMATS = {entry.format: entry for entry in FORMATS}


def source_format(format: FormatName) -> FormatEntry | None:
    """The entry of a recognized source format; None for Auto."""
    return _FORMATS.get(format)


def source_libraries(uri: str, format: FormatName) -> frozenset[str]:
    """The libraries that the prepare Job needs: by the format of the source if it is given, or by the extension of its address."""
    entry = _FORMATS.get(format)
    if entry is None:
        registered = _FORMATS[FormatName.MLFLOW] if uri.startswith(f"{MODELS}://") else None
        entry = next((entry for entry in FORMATS if uri.lower().endswith((*entry.suffixes, *entry.common))), registered)
    return frozenset(entry.libraries) if entry is not None else frozenset()
