"""ONNX: the portable form's own format. A source that ONNX Runtime reads is timed and served as it came; a newer one is lowered."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from fettle.api.reasons import Reason
from fettle.api.signature import Signature
from fettle.api.text import quoted
from fettle.api.vocabulary import FormatName, ModelFormat
from fettle.errors import RuntimeFailure, SourceError
from fettle.optimizer.data.columns import Encoder
from fettle.optimizer.onnx import inputs as onnx_inputs
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx import operators, portable
from fettle.optimizer.onnx.inputs import Hint
from fettle.optimizer.onnx.reference import evaluate
from fettle.optimizer.onnx.session import session
from fettle.optimizer.sources.base import Beside, Inputs, Original, Plain, RunModel, RunnableModel, failure_of
from fettle.optimizer.sources.boundary import with_given_inputs
from fettle.runtimes.base import Session

LOWERED_TO = (21, onnx_model.READABLE_OPSET)
log = logging.getLogger(__name__)


class Onnx:
    """A file, or a file with its weights in others beside it."""

    name = FormatName.ONNX
    stored: ModelFormat = "ONNX"
    title = "ONNX"

    def recognizes(self, path: Path, head: bytes) -> bool:
        """By parsing it: a protobuf has no first bytes of its own."""
        if path.suffix == ".onnx":
            return True  # what is wrong with it is said when it is read
        try:
            onnx_model.read(path)
        except SourceError:
            return False
        return True

    def require(self, path: Path, trusted: bool) -> None:
        """It is part of every image, and what is wrong with the file is said when it is read."""

    def companions(self, path: Path, beside: Beside) -> Sequence[str]:
        """Files with external data."""
        return onnx_model.external_files(onnx_model.read(path))

    def hints(self, path: Path, inputs: Inputs) -> Mapping[str, Hint]:
        """From the file's own graph."""
        return onnx_inputs.hints(with_given_inputs(onnx_model.read(path), inputs))

    def convert(self, path: Path, inputs: Inputs, folder: Path) -> Path:
        """Nothing is to be done."""
        return path

    def original(self, path: Path, plain: Plain, inputs: Inputs, folder: Path) -> Original:
        """The file as it came, unless its boundary was changed, it is newer than the runtime, or its tensors have to be in one file."""
        model = plain.model
        if onnx_model.opset(model) > onnx_model.READABLE_OPSET or model.ir_version > onnx_model.READABLE_IR:
            return _lowered(path, plain, folder)
        if plain.changes:
            return _taken_in(path, plain, folder, plain.changes)
        try:
            run = _opened(path, plain.signature, model).infer
        except SourceError:
            if not onnx_model.external_files(onnx_model.read(path)):
                raise
            log.info("the source itself does not load", exc_info=True)
            # A shape that depends on a tensor outside the file stops the runtime, though the model is sound.
            why = "external tensors were embedded, because the source does not load without them; the portable form is the timed baseline"
            return _taken_in(path, plain, folder, (why,))
        return _original(model, path, plain.signature, run, untouched=True)

    def encoder(self, path: Path, inputs: Inputs) -> Encoder | None:
        """A file without a tokenizer."""
        return None

    def native(self, path: Path, inputs: Inputs, folder: Path) -> Path | None:
        """See `SourceFormat.native`."""
        return None

    def unconverted(self, path: Path, inputs: Inputs) -> RunnableModel | None:
        """It is the portable form."""
        return None


FORMATS = (Onnx(),)


def saved(model: onnx.ModelProto, folder: Path, home: Path) -> Path:
    """`model` as a file in `folder`; `home` is where files lie that hold weights of it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    onnx_model.save(model, path, home)
    return path


def _original(
    model: onnx.ModelProto,
    path: Path,
    signature: Signature,
    run: RunModel,
    notes: tuple[str, ...] = (),
    untouched: bool = False,
) -> Original:
    return Original(model, path, signature, onnx_inputs.hints(model), run, untouched, not untouched, notes)


def _taken_in(path: Path, plain: Plain, folder: Path, notes: tuple[str, ...]) -> Original:
    made = saved(plain.model, folder, path.parent)
    run = _opened(made, plain.signature, plain.model).infer
    return _original(plain.model, made, plain.signature, run, notes)


def _opened(path: Path, signature: Signature, model: onnx.ModelProto) -> Session:
    try:
        return session(path, signature, graph_optimization=False)
    except RuntimeFailure as error:
        raise operators.refusal(model, failure_of(error)) from error


def _lowered(path: Path, plain: Plain, folder: Path) -> Original:
    """A source newer than what the runtime reads: lowered until it loads, its answers later held against onnx's own evaluator."""
    model, signature = plain.model, plain.signature
    versions = f"opset {onnx_model.opset(model)}, IR {model.ir_version}"
    reads = f"opset {onnx_model.READABLE_OPSET}, IR {onnx_model.READABLE_IR}"
    faults: list[str] = []
    targets = (onnx_model.opset(model),) if onnx_model.opset(model) <= onnx_model.READABLE_OPSET else LOWERED_TO
    for version in targets:
        try:
            changed = portable.lower(model, version)
            made = saved(changed, folder / f"lowered-{version}", path.parent)
            opened = session(made, signature, graph_optimization=False)
        except Exception as error:  # noqa: BLE001  converter and runtime raise what they like; the fault is told below
            faults.append(f"{version}: {quoted(error, 150)}")
            continue
        run = evaluate(model) if len(targets) > 1 else opened.infer
        note = f"the source ({versions}) is newer than the runtime supports ({reads}); the portable form is the timed baseline"
        return _original(changed, made, signature, run, (*plain.changes, note))
    unknown = operators.unknown(model)
    reason = Reason.UNSUPPORTED_OPERATOR if unknown else Reason.UNSUPPORTED_OPSET
    message = (
        f"the source ({versions}) is newer than the runtime supports ({reads}) and could not be converted; "
        f"export it again within these versions: {'; '.join(unknown or faults)}"
    )
    raise SourceError(message, reason=reason)
