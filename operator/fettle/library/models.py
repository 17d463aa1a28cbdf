"""A model in memory, written to a file that Fettle accepts as a source."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fettle.api.signature import Signature, Tensor
from fettle.api.text import installing
from fettle.errors import DataError, FettleError, UsageError
from fettle.runtimes.base import Array

if TYPE_CHECKING:  # nothing of the optimizer is imported before it is needed
    from fettle.optimizer.sources.sklearn_onnx import FittedEstimator

TAKEN = "a path, an onnx.ModelProto, a torch.nn.Module, a torch.export.ExportedProgram, a model of transformers or Keras, or a scikit-learn estimator"


@dataclass(frozen=True)
class ModelFile:
    """The file of a model, the names of its inputs if they are known, and the model's name."""

    path: str
    inputs: tuple[str, ...]
    name: str | None = None


def written(model: Any, example: Sequence[Array], folder: Path) -> ModelFile:
    """`model` as a file: its own path, or a new file in `folder`. `example`: a few items, one array per input. Raises UsageError."""
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)
        return ModelFile(path, _onnx_inputs(path) if path.endswith(".onnx") else ())
    families = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    name = type(model).__name__
    if "onnx" in families and name == "ModelProto":
        return _onnx(model, model.graph.name or "model", folder)
    if "transformers" in families and hasattr(model, "save_pretrained"):
        model.save_pretrained(folder / "model")
        return ModelFile(str(folder / "model"), (), name)
    if "keras" in families and hasattr(model, "save"):
        return _keras(model, folder)
    if "torch" in families:
        return _torch(model, name, example, folder)
    if "sklearn" in families:
        return _sklearn(model, name, example, folder)
    raise UsageError(f"cannot optimize a {type(model).__module__}.{name}: expected {TAKEN}")


def _onnx_inputs(path: str) -> tuple[str, ...]:
    import onnx

    try:
        return _inputs_of(onnx.load(path, load_external_data=False))
    except Exception:  # noqa: BLE001 - what is wrong with the file is said by the run, which reads it whole
        return ()


def _inputs_of(model: Any) -> tuple[str, ...]:
    from fettle.optimizer.onnx.model import inputs

    return tuple(value.name for value in inputs(model.graph))


def _onnx(model: Any, name: str, folder: Path) -> ModelFile:
    import onnx

    path = folder / "model.onnx"
    onnx.save(model, str(path), save_as_external_data=model.ByteSize() > onnx.checker.MAXIMUM_PROTOBUF)
    return ModelFile(str(path), _inputs_of(model), name)


def _torch(model: Any, name: str, example: Sequence[Array], folder: Path) -> ModelFile:
    import torch

    path = folder / "model.pt2"
    if not isinstance(model, torch.export.ExportedProgram):
        if not example:
            raise UsageError("a torch.nn.Module is exported with example inputs: pass evaluation or calibration")
        arrays = tuple(torch.from_numpy(np.ascontiguousarray(array[:2])) for array in example)
        batch = torch.export.Dim("batch", min=1)
        try:
            model = torch.export.export(model.eval(), arrays, dynamic_shapes=tuple({0: batch} for _ in arrays))
        except Exception as error:  # whatever the user's own code raises while it is traced
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UsageError(f"torch.export cannot export this {name}: {first}") from error
    torch.export.save(model, str(path))
    return ModelFile(str(path), tuple(model.graph_signature.user_inputs), name)


def _keras(model: Any, folder: Path) -> ModelFile:
    path = folder / "model.keras"
    if not model.built:
        raise UsageError(f"this {type(model).__name__} of Keras has no weights yet: call it on an item first")
    try:
        model.save(path)
    except (TypeError, ValueError) as error:  # of a class that Keras cannot write
        raise UsageError(f"Keras cannot save this {type(model).__name__}: {error}") from error
    inputs = getattr(model, "inputs", None) or ()  # unknown of classes of one's own
    return ModelFile(str(path), tuple(tensor.name for tensor in inputs), model.name)


def _sklearn(model: Any, name: str, example: Sequence[Array], folder: Path) -> ModelFile:
    try:
        import skl2onnx  # noqa: F401 - what converts it
    except ImportError as error:
        raise UsageError(f"a scikit-learn estimator is converted by skl2onnx: {installing('sklearn')}") from error
    if len(example) != 1:
        raise UsageError("a scikit-learn estimator takes one array: pass evaluation=(X, y)")
    from fettle.optimizer.sources import sklearn_onnx

    width = example[0].shape[1] if example[0].ndim > 1 else None
    dtype = "BYTES" if example[0].dtype.kind in "OUS" else "FP32"
    table = sklearn_onnx.Column(sklearn_onnx.TABLE, dtype, width)
    try:
        converted = sklearn_onnx.converted(model, (table,))
    except Exception as error:  # its converters raise whatever they meet
        raise UsageError(f"skl2onnx cannot convert this {name}: {error}") from error
    file = _onnx(converted, name, folder)
    _require_same_answers(sklearn_onnx.FittedEstimator(model, (table,)), name, example[0], file.path)
    return file


def _require_same_answers(estimator: FittedEstimator, name: str, table: Array, path: str) -> None:
    """All gains are measured against the graph, so it must give the estimator's answers (docs/design/sources.md).

    Raises UsageError. If only a few items get other answers, this is a warning (for an estimator in a file, a note).
    """
    from fettle.optimizer.data.items import Items
    from fettle.optimizer.onnx import model as onnx_model
    from fettle.optimizer.onnx.session import session
    from fettle.optimizer.prepare.conversion import difference
    from fettle.optimizer.sources.base import RunnableModel
    from fettle.optimizer.sources.framework import runner
    from fettle.preprocess.cast import cast

    signature = _by_item(onnx_model.signature(onnx_model.load(Path(path))))
    (column,) = signature.inputs
    try:
        items = Items({column.name: np.expand_dims(cast(column.dtype, table, column.name), 1)})
    except DataError:
        return  # the run reads the same items, and says what is wrong with them
    run = runner(estimator, "scikit-learn", signature, {})
    opened = session(Path(path), signature)
    try:
        told = difference(RunnableModel(signature, {}, run), opened.infer, items, signature)
    except FettleError as error:
        message = f"skl2onnx does not convert this {name} faithfully: {error.message}; convert it yourself, and pass the ONNX model"
        raise UsageError(message) from error
    finally:
        opened.close()
    if told is not None:
        warnings.warn(told, stacklevel=2)


def _by_item(signature: Signature) -> Signature:
    """The signature with the first axis as the batch axis wherever its size varies, as in all files that scikit-learn's converters write."""

    def stacked(tensor: Tensor) -> Tensor:
        return tensor.model_copy(update={"batch_axis": 0 if tensor.shape[:1] == (-1,) else None})

    return Signature(
        inputs=tuple(map(stacked, signature.inputs)),
        outputs=tuple(map(stacked, signature.outputs)),
    )


def named(items: Mapping[str, Any] | Sequence[Array], inputs: Sequence[str]) -> dict[str, Array]:
    """Arrays by the name of their input. Raises UsageError if there are not as many arrays as inputs."""
    if isinstance(items, Mapping):
        return {str(name): np.asarray(array) for name, array in items.items()}
    if len(inputs) != len(items):
        known = (
            f"the model has the inputs {', '.join(inputs)}"
            if inputs
            else "the names of the model's inputs are not known"
        )
        raise UsageError(f"{known}, and {len(items)} arrays were given: pass a dictionary of arrays by input name")
    return dict(zip(inputs, items, strict=True))
