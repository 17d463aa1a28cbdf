"""What each recipe step, source format and runtime needs: data only, so that the plan can ask before a Job runs.

A step's row stands for one pair (kind of step, family of runtimes). `revision` and the versions of `libraries` are part
of a build's cache key: raise a revision whenever the same step on the same input would write other bytes. Nothing here
imports a toolchain; a test holds the rows against what `optimizer/` and `runtimes/` implement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from fettle.api.recipe import RecipeStep
from fettle.api.vocabulary import Precision, RuntimeName, SourceFormat, StepKind


class Image(StrEnum):
    """Image of a Job or of a serving pod: a slim one, or one with a large framework on top."""

    OPTIMIZER = "optimizer"
    OPTIMIZER_TORCH = "optimizer-torch"
    SERVER = "server"
    SERVER_TORCH = "server-torch"


@dataclass(frozen=True)
class StepEntry:
    """What one kind of step needs in one family, and what identifies its outcome."""

    kind: StepKind
    family: RuntimeName
    writes: str  # format of the file it leaves: "ONNX" or "OpenVINO", as in api.task.StoredModel
    libraries: tuple[str, ...]  # distributions whose versions are part of the cache key
    function: str | None = None  # "module:function" in optimizer/steps; None where nothing is left to do
    revision: int = 1
    lossy: bool = False  # answers may change, so they must be proved
    calibration: bool = False  # needs calibration items
    instruction_set: bool = False  # the file is made for the CPU's instruction set, which is then part of the cache key
    image: Image = Image.OPTIMIZER


@dataclass(frozen=True)
class FormatEntry:
    """A source format: how it becomes the portable form. `revision` is the preparation's."""

    format: SourceFormat
    libraries: tuple[str, ...]
    runtime: RuntimeName  # runs the untouched source: the baseline
    suffixes: tuple[str, ...]  # of its files: what tells the image of a source that nobody has looked at yet
    revision: int = 1
    image: Image = Image.OPTIMIZER


@dataclass(frozen=True)
class RuntimeEntry:
    """A runtime: which files it loads and in which precisions it can be asked to compute.

    A precision other than Float32 still depends on the node; the measuring Job asks the runtime there. `process_bytes` is the
    memory of a process that has loaded the library and a model without weights.
    """

    runtime: RuntimeName
    library: str
    loads: tuple[str, ...]
    precisions: tuple[Precision, ...]
    process_bytes: int
    revision: int = 1
    image: Image = Image.OPTIMIZER  # of Jobs that measure with it
    server_image: Image = Image.SERVER


STEPS: tuple[StepEntry, ...] = (
    # The portable form is already folded and fused, and each runtime refines it when it loads it: this step is exact.
    StepEntry(StepKind.OPTIMIZE_GRAPH, RuntimeName.ONNXRUNTIME, "ONNX", ("onnx",)),
    StepEntry(StepKind.OPTIMIZE_GRAPH, RuntimeName.OPENVINO, "ONNX", ("onnx",)),
    # QDQ, activations unsigned and weights signed: what x86 runs fast with and without VNNI.
    StepEntry(
        StepKind.QUANTIZE_STATIC,
        RuntimeName.ONNXRUNTIME,
        "ONNX",
        ("onnx", "onnxruntime"),
        "onnxruntime_quantize:static",
        lossy=True,
        calibration=True,
        revision=2,
        instruction_set=True,  # weights of 7 bits where the CPU lacks VNNI
    ),
    # NNCF post-training quantization on OpenVINO's own representation.
    StepEntry(
        StepKind.QUANTIZE_STATIC,
        RuntimeName.OPENVINO,
        "OpenVINO",
        ("nncf", "openvino"),
        "nncf_quantize:static",
        lossy=True,
        calibration=True,
    ),
    # Dynamic quantization exists for onnxruntime only: NNCF offers none for activations.
    StepEntry(
        StepKind.QUANTIZE_DYNAMIC,
        RuntimeName.ONNXRUNTIME,
        "ONNX",
        ("onnx", "onnxruntime"),
        "onnxruntime_quantize:dynamic",
        lossy=True,
        revision=2,
        instruction_set=True,  # as above
    ),
)

FORMATS: tuple[FormatEntry, ...] = (
    FormatEntry(SourceFormat.ONNX, ("onnx", "onnxruntime"), RuntimeName.ONNXRUNTIME, (".onnx",), revision=3),
    FormatEntry(
        SourceFormat.TORCH_SCRIPT,
        ("onnx", "onnxruntime", "torch"),
        RuntimeName.TORCHSCRIPT,
        (".pt", ".pth", ".ts", ".jit", ".torchscript"),
        revision=3,
        image=Image.OPTIMIZER_TORCH,
    ),
    FormatEntry(
        SourceFormat.TORCH_EXPORT,
        ("onnx", "onnxruntime", "onnxscript", "torch"),
        RuntimeName.TORCHSCRIPT,
        (".pt2",),
        revision=3,
        image=Image.OPTIMIZER_TORCH,
    ),
)

# Peak memory of a measuring worker with a linear model of 640 weights was 78 MiB with onnxruntime, 101 with OpenVINO, and with torch 286
# (TorchScript) and 380 (an exported program). Its own bytes are those rounded up by a quarter and more.
RUNTIMES: tuple[RuntimeEntry, ...] = (
    RuntimeEntry(RuntimeName.ONNXRUNTIME, "onnxruntime", ("ONNX",), (Precision.FLOAT32,), process_bytes=128 << 20),
    RuntimeEntry(
        RuntimeName.OPENVINO,
        "openvino",
        ("OpenVINO", "ONNX"),
        (Precision.FLOAT32, Precision.BFLOAT16, Precision.FLOAT16),
        process_bytes=160 << 20,
    ),
    # It runs sources as they came; nothing is converted to what it loads.
    RuntimeEntry(
        RuntimeName.TORCHSCRIPT,
        "torch",
        ("TorchScript", "TorchExport"),
        (Precision.FLOAT32,),
        process_bytes=480 << 20,
        image=Image.OPTIMIZER_TORCH,
        server_image=Image.SERVER_TORCH,
    ),
)

_STEPS = {(entry.kind, entry.family): entry for entry in STEPS}
_FORMATS = {entry.format: entry for entry in FORMATS}
_RUNTIMES = {entry.runtime: entry for entry in RUNTIMES}


def kind(step: RecipeStep) -> StepKind | None:
    """Which kind a step of the API is; None if it has no key that this version knows."""
    return step.parameters.kind if step.parameters is not None else None


def step(step: RecipeStep, family: RuntimeName) -> StepEntry | None:
    """The row of `step` in `family`, or None where it does not exist (then the candidate is RecipeNotApplicable)."""
    known = kind(step)
    return _STEPS.get((known, family)) if known is not None else None


def lossy(steps: Iterable[RecipeStep], precision: Precision) -> bool:
    """Whether answers may change by intent, so that they must be proved. So may those of a step that this version does not know."""
    lossless = {entry.kind for entry in STEPS} - {entry.kind for entry in STEPS if entry.lossy}
    return precision != Precision.FLOAT32 or any(kind(step) not in lossless for step in steps)


def source_format(format: SourceFormat) -> FormatEntry | None:
    """The row of a recognised source format; Auto has none."""
    return _FORMATS.get(format)


def source_image(uri: str, format: SourceFormat) -> Image:
    """Image of the Job that looks at a source first: by its format where that is given, else by the end of its address."""
    if format != SourceFormat.AUTO:
        return _FORMATS[format].image
    return next((entry.image for entry in FORMATS if uri.lower().endswith(entry.suffixes)), Image.OPTIMIZER)


def runtime(name: RuntimeName) -> RuntimeEntry:
    """The row of a runtime."""
    return _RUNTIMES[name]
