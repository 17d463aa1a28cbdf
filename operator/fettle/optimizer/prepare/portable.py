"""From the source to the portable form: what can run it, what its boundary is, and which steps keep its answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from fettle.api.optimizedmodel import InputSpec
from fettle.api.reasons import Reason
from fettle.api.signature import Signature
from fettle.api.text import quoted
from fettle.api.vocabulary import SourceFormat
from fettle.errors import ConversionError, RuntimeFailure, SourceError
from fettle.optimizer.data.files import listed
from fettle.optimizer.onnx import inputs, operators
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx import portable as onnx_portable
from fettle.optimizer.onnx.reference import evaluate
from fettle.optimizer.prepare.check import (
    Reference,
    Run,
    Subject,
    failure_of,
    refuse_states,
    session,
)
from fettle.optimizer.prepare.source import Source
from fettle.optimizer.sources import torch
from fettle.runtimes.base import Session

LOWERED_TO = (21, onnx_model.READABLE_OPSET)
Names = Callable[[], Collection[str]]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plain:
    """The source in ONNX with a boundary of plain tensors, and `run`, which answers as the source does.

    `untouched`: the source itself can be timed and served. `converted`: `model` is not what `run` runs, so it has to be compared.
    """

    model: onnx.ModelProto
    path: Path
    signature: Signature
    run: Run
    untouched: bool
    converted: bool
    notes: tuple[str, ...] = ()

    @property
    def subject(self) -> Subject:
        """The source as it is asked."""
        return Subject(self.signature, inputs.hints(self.model), self.run)


@dataclass
class Portable:
    """The portable form, and what was and was not done on the way."""

    model: onnx.ModelProto
    path: Path
    kept: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Boundary:
    """A model whose boundary is plain. `whole`: with the inputs that were frozen; `changed`: what was done to it; `remarks`: what was not."""

    model: onnx.ModelProto
    whole: Signature
    signature: Signature
    changed: tuple[str, ...]
    remarks: tuple[str, ...]


def plain(source: Source, specs: tuple[InputSpec, ...], columns: Names, folder: Path) -> Plain:
    """Make the source's boundary plain and load it. `columns`: asks for the names of what the items give.

    Raises SourceError: UnsupportedModel, UnsupportedOperator, UnsupportedOpset, SourceCorrupted, InvalidSpec.
    """
    own = source.format == SourceFormat.ONNX
    entry = source.path if own else torch.convert(source.path, specs, folder / "converted")
    original = onnx_model.load(entry)
    with onnx_model.holding_together(original):
        found = _boundary(original, specs, columns)
    model, signature, notes = found.model, found.signature, list(found.changed)
    if not own:
        path = _saved(model, folder / "plain", entry)
        frozen = {spec.name: spec.value for spec in specs if spec.value is not None}
        run = torch.runner(source.path, found.whole, frozen)
        made = Plain(model, path, signature, run, not notes, True, tuple(notes))
    elif onnx_model.opset(model) > onnx_model.READABLE_OPSET or model.ir_version > onnx_model.READABLE_IR:
        made = _lowered(model, signature, source.path.parent, folder, notes)
    else:
        made = _own(source, model, signature, folder, notes)
    return replace(made, notes=(*made.notes, *found.remarks))


def _boundary(original: onnx.ModelProto, specs: tuple[InputSpec, ...], columns: Names) -> _Boundary:
    """Raises SourceError: UnsupportedModel, InvalidSpec."""
    changed: list[str] = []
    model = onnx_portable.strip_zip_map(original)
    if model is not original:
        changed.append("ZipMap was removed: probabilities are a plain tensor; the portable form is the timed baseline")
    given = _given(original, specs, columns)
    if given:
        changed.append(
            f"the inputs {listed(given)} have a default value in the file; they are given, so they are inputs like any other"
        )
    copied = onnx.ModelProto()
    copied.CopyFrom(onnx_portable.require_inputs(model, given))
    onnx_model.apply_input_specs(copied, specs)
    whole = onnx_model.signature(_with_output_shapes(copied))
    model = onnx_portable.freeze_inputs(copied, specs)
    if model is not copied:
        changed.append("inputs with a value were frozen; the portable form is the timed baseline")
    signature = onnx_model.signature(_with_output_shapes(model))
    if not signature.inputs or not signature.outputs:
        raise SourceError("the model needs at least one input and one output", reason=Reason.UNSUPPORTED_MODEL)
    refuse_states(signature, onnx_model.passed(model.graph))
    return _Boundary(model, whole, signature, tuple(changed), _defaults_kept(original, given))


def asked(model: onnx.ModelProto, specs: tuple[InputSpec, ...], columns: Names) -> onnx.ModelProto:
    """`model`, in which the inputs that are given have no default value any more."""
    return onnx_portable.require_inputs(model, _given(model, specs, columns))


def _given(model: onnx.ModelProto, specs: tuple[InputSpec, ...], columns: Names) -> list[str]:
    """Inputs with a default value that the items give or `source.inputs` names."""
    optional = onnx_model.optional_inputs(model.graph)
    if not optional:
        return []
    said = {spec.name for spec in specs} | set(columns())
    return [name for name in optional if name in said]


def _defaults_kept(model: onnx.ModelProto, given: Collection[str]) -> tuple[str, ...]:
    """What is said of default values that stay; nothing where the file had to list every weight among its inputs."""
    kept = [name for name in onnx_model.optional_inputs(model.graph) if name not in given]
    if not kept or model.ir_version < onnx_model.FREE_INITIALIZERS_IR:
        return ()
    return (f"inputs with a default value keep it, for neither the items nor source.inputs give them: {listed(kept)}",)


def _own(source: Source, model: onnx.ModelProto, signature: Signature, folder: Path, notes: list[str]) -> Plain:
    """A source in ONNX: the file as it came, unless something of it was changed (`notes`) or the runtime needs its tensors in one file."""
    if not notes:
        try:
            opened = _opened(source.path, signature, model)
            return Plain(model, source.path, signature, opened.infer, untouched=True, converted=False)
        except SourceError:
            if len(source.files) == 1:
                raise
            log.info("the source does not load as it came", exc_info=True)
            # A shape that depends on a tensor outside the file stops the runtime, though the model is sound.
            notes = [
                "tensors beside the file were taken in, without which it does not load; the portable form is the timed baseline"
            ]
    path = _saved(model, folder / "plain", source.path)
    opened = _opened(path, signature, model)
    return Plain(model, path, signature, opened.infer, untouched=False, converted=True, notes=tuple(notes))


def _with_output_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, with the shapes of outputs that the file leaves out, as far as they can be inferred."""
    values = [value for value in model.graph.output if value.type.HasField("tensor_type")]
    if all(onnx_model.has_rank(value) for value in values):
        return model
    try:
        return onnx_portable.infer_shapes(model)
    except Exception:
        log.info("output shapes could not be inferred", exc_info=True)
        return model


def _saved(model: onnx.ModelProto, folder: Path, before: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    onnx_model.save(model, path, before.parent)
    return path


def _opened(path: Path, signature: Signature, model: onnx.ModelProto) -> Session:
    try:
        return session(path, signature, graph_optimization=False)
    except RuntimeFailure as error:
        raise operators.refusal(model, failure_of(error)) from error


def _lowered(model: onnx.ModelProto, signature: Signature, home: Path, folder: Path, notes: list[str]) -> Plain:
    """A source newer than what the runtime reads: lowered until it loads, its answers later held against onnx's own evaluator."""
    versions = f"opset {onnx_model.opset(model)}, IR {model.ir_version}"
    reads = f"opset {onnx_model.READABLE_OPSET}, IR {onnx_model.READABLE_IR}"
    faults: list[str] = []
    targets = (onnx_model.opset(model),) if onnx_model.opset(model) <= onnx_model.READABLE_OPSET else LOWERED_TO
    for version in targets:
        path = folder / f"lowered-{version}" / "model.onnx"
        path.parent.mkdir(parents=True)
        try:
            changed = onnx_portable.lower(model, version)
            onnx_model.save(changed, path, home)
            opened = session(path, signature, graph_optimization=False)
        except Exception as error:  # noqa: BLE001  converter and runtime raise what they like; the fault is told below
            faults.append(f"{version}: {quoted(error, 150)}")
            continue
        run = evaluate(model) if len(targets) > 1 else opened.infer
        note = f"the source ({versions}) is newer than the runtime reads ({reads}); the portable form is the timed baseline"
        return Plain(changed, path, signature, run, False, True, (*notes, note))
    unknown = operators.unknown(model)
    reason = Reason.UNSUPPORTED_OPERATOR if unknown else Reason.UNSUPPORTED_OPSET
    message = (
        f"the source ({versions}) is newer than the runtime reads ({reads}) and could not be lowered; "
        f"export it again within these versions: {'; '.join(unknown or faults)}"
    )
    raise SourceError(message, reason=reason)


def portable(source: Plain, reference: Reference, folder: Path) -> Portable:
    """Apply the steps, each kept only if `reference` still holds. Raises ConversionError where not even the start holds."""
    folder.mkdir(parents=True, exist_ok=True)
    home = source.path.parent
    result = Portable(source.model, source.path, notes=list(source.notes))
    if source.converted:
        try:
            moved = _difference(source.path, source.signature, reference)
        except RuntimeFailure as error:
            raise ConversionError(f"the converted source does not run: {error.message}", reason=error.reason) from error
        if moved is not None:
            message = f"the converted source answers otherwise: {moved}"
            raise ConversionError(message, reason=Reason.NUMERICAL_MISMATCH)
    for step in onnx_portable.steps(source.model):
        _try(step, result, reference, source.signature, folder, home)
    final = folder / "portable" / "model.onnx"
    final.parent.mkdir()
    model = onnx.ModelProto()
    model.CopyFrom(result.model)
    model.graph.name = model.graph.name or "model"
    onnx_model.save(model, final, home)
    return Portable(model, final, result.kept, result.notes)


def _try(
    step: onnx_portable.Step, result: Portable, reference: Reference, signature: Signature, folder: Path, home: Path
) -> None:
    """Take the first attempt of `step` that keeps the answers; say so where there was none."""
    faults: list[str] = []
    for number, attempt in enumerate(step.attempts):
        path = folder / f"{step.name.replace(' ', '-')}-{number}" / "model.onnx"
        try:
            changed = attempt(result.model)
            if changed is result.model:
                return
            path.parent.mkdir(parents=True)
            onnx_model.save(changed, path, home)
            moved = _difference(path, signature, reference)
        except Exception as error:
            moved = quoted(error, 150)
            log.info("step %r failed", step.name, exc_info=True)
        if moved is None:
            result.model, result.path = changed, path
            result.kept.append(step.name)
            return
        faults.append(moved)
    result.notes.append(f"the step {step.name!r} was left out: {faults[0]}")


def _difference(path: Path, signature: Signature, reference: Reference) -> str | None:
    opened = session(path, signature)
    try:
        return reference.differs(opened.infer)
    finally:
        opened.close()


def specs_by_name(specs: tuple[InputSpec, ...]) -> Mapping[str, InputSpec]:
    """`source.inputs` by name."""
    return {spec.name: spec for spec in specs}
