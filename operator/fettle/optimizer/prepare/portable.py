"""From the original to the portable form, by steps that preserve its outputs."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from fettle.api.reasons import Reason
from fettle.api.signature import Signature
from fettle.api.text import quoted
from fettle.errors import ConversionError, RuntimeFailure
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx import portable as onnx_portable
from fettle.optimizer.onnx.session import session
from fettle.optimizer.reference import OriginalAnswers
from fettle.optimizer.sources.base import Original

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Portable:
    """The portable form, and which steps were and were not applied."""

    model: onnx.ModelProto
    path: Path
    kept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def portable(source: Original, reference: OriginalAnswers, folder: Path) -> Portable:
    """Apply the steps; keep each only if the answers still match `reference`. Raises ConversionError if the converted model itself does not match."""
    folder.mkdir(parents=True, exist_ok=True)
    home = source.path.parent
    if source.converted:
        _check_conversion(source, reference)
    form = Portable(source.model, source.path, notes=source.notes)
    for step in onnx_portable.steps(source.model):
        form = _tried(step, form, reference, source.signature, folder, home)
    final = folder / "portable" / "model.onnx"
    final.parent.mkdir()
    model = deepcopy(form.model)
    model.graph.name = model.graph.name or "model"
    onnx_model.save(model, final, home)
    return replace(form, model=model, path=final)


def with_sizes(form: Portable, signature: Signature, reference: OriginalAnswers, folder: Path) -> Portable:
    """`form` with the sizes of its inputs that the signature fixes, if the answers still match `reference`: OpenVINO loads some graphs only so."""
    sizes = {tensor.name: tensor.shape for tensor in signature.inputs}
    step = onnx_portable.Step("fix sizes of inputs", (lambda model: onnx_portable.fix_sizes(model, sizes),))
    return _tried(step, form, reference, signature, folder, form.path.parent)


def _check_conversion(source: Original, reference: OriginalAnswers) -> None:
    """Raises ConversionError if the converted model's outputs differ from the original's."""
    try:
        moved = _difference(source.path, source.signature, reference)
    except RuntimeFailure as error:
        raise ConversionError(f"the converted model does not run: {error.message}", reason=error.reason) from error
    if moved is not None:
        message = f"the converted model's outputs differ from the original's: {moved}"
        raise ConversionError(message, reason=Reason.NUMERICAL_MISMATCH)


def _tried(
    step: onnx_portable.Step, form: Portable, reference: OriginalAnswers, signature: Signature, folder: Path, home: Path
) -> Portable:
    """`form` after the first attempt of `step` that preserves the outputs; else `form` with a note that says why the step was skipped."""
    faults: list[str] = []
    for number, attempt in enumerate(step.attempts):
        path = folder / f"{step.name.replace(' ', '-')}-{number}" / "model.onnx"
        try:
            changed = attempt(form.model)
            if changed is form.model:
                return form
            path.parent.mkdir(parents=True)
            onnx_model.save(changed, path, home)
            moved = _difference(path, signature, reference)
        except Exception as error:
            moved = quoted(error, 150)
            log.info("step %r failed", step.name, exc_info=True)
        if moved is None:
            return replace(form, model=changed, path=path, kept=(*form.kept, step.name))
        faults.append(moved)
    return replace(form, notes=(*form.notes, f"the step {step.name!r} was skipped: {faults[0]}"))


def _difference(path: Path, signature: Signature, reference: OriginalAnswers) -> str | None:
    opened = session(path, signature)
    try:
        return reference.differs(opened.infer)
    finally:
        opened.close()
