"""The requirements of each recipe step and runtime. It is data only, so that the plan can use it before a Job runs. Source formats: `formats.py`.

A step's entry is for one pair (kind of step, family of runtimes). `revision` and the versions of `libraries` are part of a build's cache
key: increase the revision whenever the same step would write other bytes for the same input. Nothing here imports a toolchain; a test
compares the entries with what `optimizer/` and `runtimes/` implement.

Libraries have the names of their distributions. No entry names an image: `images.py` lists the libraries of each image.
"""

from __future__ import annotations

from collections.abc import Iterable

from fettle.api.catalog_rows import RuntimeEntry, StepEntry
from fettle.api.recipe import RecipeStep
from fettle.api.vocabulary import DeviceKind, FormatName, ModelFormat, Precision, RuntimeName, StepKind

PORTABLE: ModelFormat = "ONNX"  # what every source is converted to, and builds start from
# Runs the portable form after each step of its making, so it need not be asked whether it loads it.
PORTABLE_RUNTIME = RuntimeName.ONNXRUNTIME

STEPS: tuple[StepEntry, ...] = (
    # The portable form is already folded and fused, and each runtime refines it when it loads it: this step is exact.
    StepEntry(StepKind.OPTIMIZE_GRAPH, RuntimeName.ONNXRUNTIME, "ONNX", ("onnx",)),
    StepEntry(StepKind.OPTIMIZE_GRAPH, RuntimeName.OPENVINO, "ONNX", ("onnx",)),
    # A source that came quantized is put into float32 again.
    *(
        StepEntry(
            StepKind.DEQUANTIZE, family, "ONNX", ("onnx", "onnxruntime"), "onnx_dequantize:dequantize", lossy=True
        )
        for family in RuntimeName
        if family
        not in (RuntimeName.TORCHSCRIPT, RuntimeName.INDUCTOR, RuntimeName.LITERT, RuntimeName.TORCHSCRIPT_CUDA)
    ),
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
    # Both again, where the layers that change too many answers stay as they are; NNCF with asymmetric ranges.
    StepEntry(
        StepKind.QUANTIZE_MIXED,
        RuntimeName.ONNXRUNTIME,
        "ONNX",
        ("onnx", "onnxruntime"),
        "onnxruntime_quantize:mixed",
        lossy=True,
        calibration=True,
        bounded=True,
        revision=2,
        instruction_set=True,  # as in static
    ),
    StepEntry(
        StepKind.QUANTIZE_MIXED,
        RuntimeName.OPENVINO,
        "OpenVINO",
        ("nncf", "openvino"),
        "nncf_quantize:mixed",
        lossy=True,
        calibration=True,
        bounded=True,
        revision=2,
        instruction_set=True,  # what a layer loses depends on how products are summed
    ),
    # bfloat16 is a setting of the runtime; this step keeps layers that lose too much by it in float32.
    StepEntry(
        StepKind.QUANTIZE_BFLOAT16,
        RuntimeName.OPENVINO,
        "OpenVINO",
        ("openvino",),
        "openvino_bfloat16:where_it_holds",
        lossy=True,
        calibration=True,
        bounded=True,
        instruction_set=True,  # only CPUs with bfloat16 can tell
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
    # Weights of products alone, which needs to know nothing of activations.
    *(
        entry
        for kind, bits in ((StepKind.QUANTIZE_WEIGHT_ONLY, "int8"), (StepKind.QUANTIZE_WEIGHT_ONLY_INT4, "int4"))
        for entry in (
            StepEntry(
                kind,
                RuntimeName.ONNXRUNTIME,
                "ONNX",
                ("onnx", "onnx-ir", "onnxruntime"),
                f"onnxruntime_weights:{bits}",
                lossy=True,
            ),
            StepEntry(kind, RuntimeName.OPENVINO, "OpenVINO", ("nncf", "openvino"), f"nncf_weights:{bits}", lossy=True),
        )
    ),
    # On GPUs the same QDQ file serves every runtime: both sides signed and symmetric, biases in floating point, products only.
    *(
        StepEntry(
            StepKind.QUANTIZE_STATIC,
            family,
            "ONNX",
            ("onnx", "onnxruntime"),
            "onnxruntime_quantize:symmetric",
            lossy=True,
            calibration=True,
        )
        for family in (RuntimeName.ONNXRUNTIME_CUDA, RuntimeName.TENSORRT, RuntimeName.TENSORRT_RTX)
    ),
    # Engines alone compute in float8.
    *(
        StepEntry(
            StepKind.QUANTIZE_FLOAT8,
            family,
            "ONNX",
            ("onnx", "onnxruntime"),
            "onnxruntime_quantize:float8",
            lossy=True,
            calibration=True,
        )
        for family in (RuntimeName.TENSORRT, RuntimeName.TENSORRT_RTX)
    ),
    # What ends a build for a GPU: the precision is the file's there, and an engine one architecture's.
    StepEntry(
        StepKind.OPTIMIZE_GRAPH,
        RuntimeName.ONNXRUNTIME_CUDA,
        "ONNX",
        ("onnx", "onnxconverter-common"),
        "onnx_precision:cast",
        revision=3,
        finishes=True,
    ),
    StepEntry(
        StepKind.OPTIMIZE_GRAPH,
        RuntimeName.TENSORRT,
        "TensorRT",
        ("onnx", "onnxconverter-common", "tensorrt-cu12"),
        "tensorrt_engine:compile_engine",
        revision=5,
        finishes=True,
        on_device=True,
    ),
    StepEntry(
        StepKind.OPTIMIZE_GRAPH,
        RuntimeName.TENSORRT_RTX,
        "TensorRT-RTX",
        ("onnx", "onnxconverter-common", "tensorrt-rtx-cu12"),
        "tensorrt_engine:compile_engine",
        revision=5,
        finishes=True,
    ),
)


def _converting(kind: StepKind, function: str, *, lossy: bool = True, calibration: bool = False) -> StepEntry:
    """The entry of a step of TensorFlow's own converter."""
    return StepEntry(
        kind,
        RuntimeName.LITERT,
        "TFLite",
        ("tensorflow-cpu",),
        f"litert_convert:{function}",
        lossy=lossy,
        calibration=calibration,
        converts=True,
    )


STEPS += (
    _converting(StepKind.OPTIMIZE_GRAPH, "float32", lossy=False),
    _converting(StepKind.QUANTIZE_FLOAT16, "float16"),
    _converting(StepKind.QUANTIZE_DYNAMIC, "dynamic"),
    _converting(StepKind.QUANTIZE_STATIC, "static", calibration=True),
)

STEPS += (
    # PyTorch's compiler, for the CPU at hand: of a C++ compiler's packages nothing is in the key, because answers are measured anyway.
    StepEntry(
        StepKind.OPTIMIZE_GRAPH,
        RuntimeName.INDUCTOR,
        "AOTInductor",
        ("torch",),
        "inductor_compile:compile_program",
        instruction_set=True,
        on_device=True,
        converts=True,
    ),
)

TRAINER = RuntimeName.TORCHSCRIPT  # the family of steps that train: PyTorch


def _training(kind: StepKind, function: str, *libraries: str, training: bool = True) -> StepEntry:
    """The entry of a step that trains. Its result depends on the class of CPU, because floating-point sums differ between instruction sets."""
    return StepEntry(
        kind,
        TRAINER,
        "TorchExport",
        ("onnx", "onnx2pytorch", "onnxruntime", "onnxscript", "torch", *libraries),
        function,
        revision=4,
        lossy=True,
        calibration=not training,
        instruction_set=True,
        trains=True,
        training=training,
    )


STEPS += (
    _training(StepKind.PRUNE_STRUCTURED, "torch_prune:structured", "torch-pruning"),
    _training(StepKind.PRUNE_MAGNITUDE, "torch_sparse:magnitude"),
    _training(StepKind.PRUNE_NM, "torch_sparse:n_of_m"),
    _training(StepKind.LOW_RANK, "torch_low_rank:low_rank", "tensorly", training=False),
    _training(StepKind.REPLACE, "torch_replace:depthwise_separable"),
    _training(StepKind.QUANTIZE_AWARE, "torch_aware:aware"),
    _training(StepKind.DISTILL, "torch_distill:distill", "torch-pruning"),
)

# Peak memory of a measuring worker with a linear model of 640 weights was 78 MiB with onnxruntime, 101 with OpenVINO, and with torch 286
# (TorchScript) and 380 (an exported program). Its own bytes are those rounded up by a quarter and more.
RUNTIMES: tuple[RuntimeEntry, ...] = (
    RuntimeEntry(
        RuntimeName.ONNXRUNTIME,
        "onnxruntime",
        ("ONNX",),
        (Precision.FLOAT32,),
        process_bytes=128 << 20,
        by_default=True,
    ),
    RuntimeEntry(
        RuntimeName.OPENVINO,
        "openvino",
        ("OpenVINO", "ONNX"),
        (Precision.FLOAT32, Precision.BFLOAT16, Precision.FLOAT16),
        process_bytes=160 << 20,
        by_default=True,
    ),
    # It runs sources as they came; nothing is converted to what it loads.
    RuntimeEntry(
        RuntimeName.TORCHSCRIPT,
        "torch",
        ("TorchScript", "TorchExport"),
        (Precision.FLOAT32,),
        process_bytes=480 << 20,
    ),
    # What PyTorch's compiler makes of a program of torch.export: machine code, and calls of the same library's kernels.
    RuntimeEntry(
        RuntimeName.INDUCTOR,
        "torch",
        ("AOTInductor",),
        (Precision.FLOAT32,),
        process_bytes=480 << 20,
        converts=(FormatName.TORCH_EXPORT, FormatName.TORCH_MODULE, FormatName.HUGGING_FACE),
        compiled=True,
    ),
    # It runs sources as they came, too, and what TensorFlow's converter makes of others.
    RuntimeEntry(
        RuntimeName.LITERT,
        "ai-edge-litert",
        ("TFLite",),
        (Precision.FLOAT32,),
        process_bytes=128 << 20,
        converts=(FormatName.KERAS, FormatName.SAVED_MODEL),
    ),
    # Of the host's memory: a process that has loaded CUDA's libraries. Not measured on a GPU; a bound that leaves room.
    RuntimeEntry(
        RuntimeName.ONNXRUNTIME_CUDA,
        "onnxruntime-gpu",
        ("ONNX",),
        (Precision.FLOAT32, Precision.TF32, Precision.FLOAT16),
        process_bytes=2 << 30,
        by_default=True,
        device=DeviceKind.NVIDIA,
    ),
    RuntimeEntry(
        RuntimeName.TENSORRT,
        "tensorrt-cu12",
        ("TensorRT",),
        (Precision.FLOAT32, Precision.TF32, Precision.BFLOAT16, Precision.FLOAT16),
        process_bytes=2 << 30,
        device=DeviceKind.NVIDIA,
    ),
    RuntimeEntry(
        RuntimeName.TENSORRT_RTX,
        "tensorrt-rtx-cu12",
        ("TensorRT-RTX",),
        (Precision.FLOAT32, Precision.TF32, Precision.BFLOAT16, Precision.FLOAT16),
        process_bytes=2 << 30,
        by_default=True,
        device=DeviceKind.NVIDIA,
        architectures=("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),  # of the release in requirements/gpu.txt
    ),
    # It runs sources as they came. PyTorch is one distribution, which computes on a GPU where NVIDIA's libraries are installed beside it.
    RuntimeEntry(
        RuntimeName.TORCHSCRIPT_CUDA,
        "torch",
        ("TorchScript", "TorchExport"),
        (Precision.FLOAT32, Precision.TF32),
        process_bytes=3 << 30,
        device=DeviceKind.NVIDIA,
        beside=("cuda-toolkit",),
    ),
)

DEFAULT_RUNTIMES = tuple(entry.runtime for entry in RUNTIMES if entry.by_default and entry.device is DeviceKind.CPU)
DEFAULT_GPU_RUNTIMES = tuple(
    entry.runtime for entry in RUNTIMES if entry.by_default and entry.device is DeviceKind.NVIDIA
)

_STEPS = {(entry.kind, entry.family): entry for entry in STEPS}
_RUNTIMES = {entry.runtime: entry for entry in RUNTIMES}


def kind(step: RecipeStep) -> StepKind | None:
    """The kind of a step; None if this version does not know its key."""
    return step.parameters.kind if step.parameters is not None else None


def step(step: RecipeStep, family: RuntimeName) -> StepEntry | None:
    """The entry of `step` in `family`; None if there is none (the candidate is RecipeNotApplicable then)."""
    known = kind(step)
    if known is None:
        return None
    # What is trained becomes the portable form again, for every family that loads it or builds from it.
    trained = _STEPS.get((known, TRAINER))
    return _STEPS.get((known, family)) or (trained if trained is not None and trained.trains else None)


def trains(step_: RecipeStep) -> bool:
    """Whether the step trains the model."""
    entry = step(step_, TRAINER)
    return entry is not None and entry.trains


def finish(family: RuntimeName) -> StepEntry | None:
    """The entry of the step that ends each build of that family, if there is one."""
    entry = _STEPS.get((StepKind.OPTIMIZE_GRAPH, family))
    return entry if entry is not None and entry.finishes else None


def converts(family: RuntimeName) -> bool:
    """Whether the files of that family are made of sources by a converter of its own, and not of the portable form."""
    return bool(runtime(family).converts)


def runs_engines(name: RuntimeName) -> bool:
    """Whether a runtime only loads engines, which are compiled for its device."""
    return PORTABLE not in runtime(name).loads and finish(name) is not None


def takes_portable(name: RuntimeName) -> bool:
    """Whether a runtime loads the portable form, or engines that are compiled from it."""
    return PORTABLE in runtime(name).loads or finish(name) is not None


def lossy(steps: Iterable[RecipeStep], precision: Precision) -> bool:
    """Whether answers may differ by design, so that the accuracy has to be proved. A step that this version does not know counts as lossy."""
    lossless = {entry.kind for entry in STEPS} - {entry.kind for entry in STEPS if entry.lossy}
    return precision != Precision.FLOAT32 or any(kind(step) not in lossless for step in steps)


def runtime(name: RuntimeName) -> RuntimeEntry:
    """The entry of a runtime."""
    return _RUNTIMES[name]
