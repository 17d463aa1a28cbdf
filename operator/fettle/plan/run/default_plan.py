"""The default plan: what is tried where the user names no recipes, cheapest first.

Each line was worth its place on real models: no single one of them was best on more than half. The numbers are those of
the table in docs/design (0 is the untouched source, which `candidates.py` puts in front).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fettle.api import architectures, catalog
from fettle.api.optimizedmodel import TargetSpec
from fettle.api.recipe import DequantizeStep, QuantizeStep, RecipeStep, RuntimeSettings
from fettle.api.report import PrepareReport
from fettle.api.training import PruneStep
from fettle.api.vocabulary import DeviceKind, FormatName, Precision, QuantizeMode, QuantizePreset, RuntimeName, StepKind
from fettle.plan.run.devices import on_device
from fettle.plan.run.planned import PlannedCandidate, planned_candidate

QUICK_MILLISECONDS = 2.0  # below, waking threads can cost more than they bring, and little of the time is products
MATMUL_SHARE = 0.5  # dynamic quantization pays only where MatMul and Gemm are the work
LSTM_SHARE = 0.5  # likewise of LSTM
LARGE_BYTES = 4 << 20  # of a model: its weights do not stay in the second-level cache of a core


@dataclass(frozen=True)
class Facts:
    """What the condition of a line depends on."""

    target: TargetSpec
    prepare: PrepareReport

    @property
    def quick(self) -> bool:
        """Whether one thread may be faster than several."""
        return self.target.threads > 1 and self.prepare.traits.p50_milliseconds < QUICK_MILLISECONDS

    @property
    def one_shape(self) -> bool:
        """Whether a fixed batch covers every requested batch size."""
        return self.prepare.signature.batchable and len(self.target.batch_sizes) == 1


@dataclass(frozen=True)
class PlanLine:
    """A line of the table. `family` is the family of runtimes for which the file is built, if that is not the runtime itself."""

    recipe: str
    runtime: RuntimeName
    steps: tuple[RecipeStep, ...] = ()
    family: RuntimeName | None = None
    precision: Precision = Precision.FLOAT32
    variant: str = ""
    one_thread: bool = False
    static: bool = False
    when: Callable[[Facts], bool] = lambda facts: True

    def candidate(self, target: TargetSpec) -> PlannedCandidate:
        """The candidate of this line on `target`."""
        settings = RuntimeSettings(
            threads=1 if self.one_thread else target.threads,
            precision=self.precision,
            batch_size=target.batch_sizes[0] if self.static else None,
        )
        return planned_candidate(
            self.recipe,
            self.runtime,
            on_device(self.runtime, settings, target),
            steps=self.steps,
            family=self.family,
            variant=self.variant,
        )


def _int8(
    mode: QuantizeMode = QuantizeMode.STATIC,
    preset: QuantizePreset = QuantizePreset.DEFAULT,
    operators: tuple[str, ...] = (),
) -> tuple[RecipeStep, ...]:
    return (RecipeStep(quantize=QuantizeStep(mode=mode, preset=preset, operators=operators)),)


ORT, OPENVINO = RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO
TORCHSCRIPT, INDUCTOR, LITERT = RuntimeName.TORCHSCRIPT, RuntimeName.INDUCTOR, RuntimeName.LITERT
TORCHSCRIPT_CUDA = RuntimeName.TORCHSCRIPT_CUDA
GPU_RUNTIMES = tuple(entry.runtime for entry in catalog.RUNTIMES if entry.device is DeviceKind.NVIDIA)
ON_GPUS = tuple(name for name in GPU_RUNTIMES if catalog.takes_portable(name))
ENGINES = tuple(name for name in ON_GPUS if catalog.runs_engines(name))
STATIC = _int8()
TRANSFORMER = _int8(preset=QuantizePreset.TRANSFORMER)
CORE = _int8(operators=("Conv", "MatMul", "Gemm"))
MIXED = _int8(QuantizeMode.MIXED)
MIXED_TRANSFORMER = _int8(QuantizeMode.MIXED, QuantizePreset.TRANSFORMER)
DYNAMIC = _int8(QuantizeMode.DYNAMIC, operators=("MatMul", "Gemm"))
DYNAMIC_LSTM = _int8(QuantizeMode.DYNAMIC, operators=("LSTM",))
WEIGHT_ONLY = _int8(QuantizeMode.WEIGHT_ONLY)
AWARE = _int8(QuantizeMode.AWARE)
FLOAT8 = _int8(QuantizeMode.FLOAT8)
BFLOAT16 = _int8(QuantizeMode.BFLOAT16)
HALF = (RecipeStep(quantize=QuantizeStep(mode=QuantizeMode.FLOAT16)),)
DEQUANTIZED = (RecipeStep(dequantize=DequantizeStep()),)
DYNAMIC_ALL = _int8(QuantizeMode.DYNAMIC)
PRUNED = (RecipeStep(prune=PruneStep(target_speedup=2.0)),)


def _quick(facts: Facts) -> bool:
    return facts.quick


def _slow(facts: Facts) -> bool:
    """Whether products take long enough for a number format to matter."""
    traits = facts.prepare.traits
    return traits.p50_milliseconds >= QUICK_MILLISECONDS and not traits.quantized


def _transformer(facts: Facts) -> bool:
    return facts.prepare.traits.transformer


def _no_transformer(facts: Facts) -> bool:
    return not facts.prepare.traits.transformer


def _quantized(facts: Facts) -> bool:
    return facts.prepare.traits.quantized


def _one_shape(facts: Facts) -> bool:
    return facts.one_shape


def _bound_by_memory(facts: Facts) -> bool:
    """Whether products are most of the work, and what they wait for is weights."""
    prepare = facts.prepare
    return prepare.traits.matmul_time_share >= MATMUL_SHARE and prepare.portable.bytes >= LARGE_BYTES


def _trainable(facts: Facts) -> bool:
    return facts.prepare.training is not None and not facts.prepare.traits.quantized


def _from(wanted: Precision | StepKind) -> Callable[[Facts], bool]:
    """Whether the target's GPU has that number format."""

    def there(facts: Facts) -> bool:
        device = facts.target.device
        return (
            device is not None and device.architecture is not None and architectures.offers(device.architecture, wanted)
        )

    return there


def _frozen(facts: Facts) -> bool:
    """Whether PyTorch freezes and fuses the source: it does so with scripts."""
    return facts.prepare.source.format != FormatName.TORCH_EXPORT


_tf32 = _from(Precision.TF32)


def _made_for_litert(facts: Facts) -> bool:
    return facts.prepare.original.format != "TFLite"


def _openvino(recipe: str, steps: tuple[RecipeStep, ...], when: Callable[[Facts], bool]) -> tuple[PlanLine, ...]:
    """What OpenVINO loads, computed in float32, with a free and with a fixed batch, and, where it is not int8, in bfloat16."""
    plain = PlanLine(recipe, OPENVINO, steps, when=when)
    static = replace(plain, variant="static", static=True, when=lambda facts: when(facts) and facts.one_shape)
    return plain, static, replace(plain, precision=Precision.BFLOAT16, variant="bfloat16")


MIXED_BFLOAT16 = PlanLine("bfloat16-mixed", OPENVINO, BFLOAT16, precision=Precision.BFLOAT16)

LINES: tuple[PlanLine, ...] = (
    # 1: the portable form, as onnxruntime optimizes it
    PlanLine("float32", ORT),
    PlanLine("float32", ORT, variant="1thread", one_thread=True, when=_quick),
    # 2: the same in OpenVINO, which can be several times faster with equal answers
    PlanLine("float32", OPENVINO),
    PlanLine("float32", OPENVINO, variant="static", static=True, when=_one_shape),
    PlanLine("float32", OPENVINO, variant="1thread", one_thread=True, when=_quick),
    # 2a: a script frozen and fused by PyTorch itself; an exported program runs only as it came
    PlanLine("float32", TORCHSCRIPT, when=_frozen),
    PlanLine("float32", TORCHSCRIPT_CUDA, when=_frozen),
    PlanLine("tf32", TORCHSCRIPT_CUDA, precision=Precision.TF32, when=lambda facts: _frozen(facts) and _tf32(facts)),
    # 2b: what PyTorch's compiler makes of a program; what TensorFlow's converter makes for LiteRT, which runs a file of its own only as it came
    PlanLine("float32", INDUCTOR),
    PlanLine("float32", INDUCTOR, variant="1thread", one_thread=True, when=_quick),
    PlanLine("float32", LITERT, when=_made_for_litert),
    # 2c: any other runtime, until it has lines of its own
    *(
        PlanLine("float32", name)
        for name in RuntimeName
        if name not in (ORT, OPENVINO, TORCHSCRIPT, INDUCTOR, LITERT, *GPU_RUNTIMES)
    ),
    # 3: reduced precision; the measuring node rejects what its CPU only emulates
    PlanLine("bfloat16", OPENVINO, precision=Precision.BFLOAT16),
    PlanLine("bfloat16", OPENVINO, precision=Precision.BFLOAT16, variant="static", static=True, when=_one_shape),
    PlanLine("float16", OPENVINO, precision=Precision.FLOAT16),
    PlanLine("float16", OPENVINO, precision=Precision.FLOAT16, variant="static", static=True, when=_one_shape),
    # 3a: bfloat16 where the answers allow it; the layers that lose too much stay in float32
    replace(MIXED_BFLOAT16, variant="static", static=True, when=lambda facts: facts.one_shape and _slow(facts)),
    replace(MIXED_BFLOAT16, when=lambda facts: not facts.one_shape and _slow(facts)),
    # 4: NNCF with the preset that suits the model (the default one ruins transformers)
    *_openvino("int8", STATIC, _no_transformer),
    *_openvino("int8-transformer", TRANSFORMER, _transformer),
    # 5: the same with asymmetric ranges; the layers that lose too much stay in floating point
    *_openvino("int8-mixed", MIXED, _no_transformer),
    *_openvino("int8-transformer-mixed", MIXED_TRANSFORMER, _transformer),
    # 6, 7: onnxruntime's QDQ file, in both runtimes
    PlanLine("int8", ORT, STATIC),
    PlanLine("int8", OPENVINO, STATIC, family=ORT),
    # 8: the same without the layers that lose too much
    PlanLine("int8-mixed", ORT, MIXED),
    # 9: of a transformer only the products gain
    PlanLine("int8-core", ORT, CORE, when=_transformer),
    PlanLine("int8-dynamic", ORT, DYNAMIC, when=lambda facts: facts.prepare.traits.matmul_time_share >= MATMUL_SHARE),
    PlanLine("int8-lstm", ORT, DYNAMIC_LSTM, when=lambda facts: facts.prepare.traits.lstm_time_share >= LSTM_SHARE),
    # 9b: a source that came quantized, in float32 again, and quantized as suits each runtime
    PlanLine("dequantized", ORT, DEQUANTIZED, when=_quantized),
    *_openvino("dequantized", DEQUANTIZED, _quantized),
    *_openvino("requantized", DEQUANTIZED + STATIC, lambda facts: _quantized(facts) and _no_transformer(facts)),
    *_openvino(
        "requantized-transformer", DEQUANTIZED + TRANSFORMER, lambda facts: _quantized(facts) and _transformer(facts)
    ),
    PlanLine("requantized", ORT, DEQUANTIZED + STATIC, when=_quantized),
    # 9a: the converter's own quantization for LiteRT
    PlanLine("float16", LITERT, HALF, when=_made_for_litert),
    PlanLine("int8-dynamic", LITERT, DYNAMIC_ALL, when=_made_for_litert),
    PlanLine("int8", LITERT, STATIC, when=_made_for_litert),
    # 9c: weights alone in int8, where reading them takes the time
    PlanLine("int8-weights", ORT, WEIGHT_ONLY, when=_bound_by_memory),
    PlanLine("int8-weights", OPENVINO, WEIGHT_ONLY, when=_bound_by_memory),
    # 10: on GPUs, for each runtime: float32, TF32, float16, int8, and int8 with float16 around it; engines also in bfloat16 and float8. What
    # the architecture lacks is left out. An engine takes one batch size where one is asked for, else one item to the largest.
    *(PlanLine("float32", name) for name in ON_GPUS),
    *(PlanLine("tf32", name, precision=Precision.TF32, when=_from(Precision.TF32)) for name in ON_GPUS),
    *(PlanLine("float16", name, precision=Precision.FLOAT16) for name in ON_GPUS),
    *(PlanLine("bfloat16", name, precision=Precision.BFLOAT16, when=_from(Precision.BFLOAT16)) for name in ENGINES),
    *(PlanLine("int8", name, STATIC) for name in ON_GPUS),
    *(PlanLine("int8", name, STATIC, precision=Precision.FLOAT16, variant="float16") for name in ON_GPUS),
    *(
        PlanLine("float8", name, FLOAT8, precision=around, variant=variant, when=_from(StepKind.QUANTIZE_FLOAT8))
        for around, variant in ((Precision.FLOAT32, ""), (Precision.FLOAT16, "float16"))
        for name in ENGINES
    ),
    # 11: with training data: int8 that was trained for; half of the work pruned away, and int8 of that
    *(
        PlanLine(recipe, runtime, steps, when=_trainable)
        for recipe, steps in (("int8-aware", AWARE), ("pruned", PRUNED), ("pruned-int8", PRUNED + STATIC))
        for runtime in (ORT, OPENVINO)
    ),
)


def default_lines(runtimes: frozenset[RuntimeName]) -> tuple[PlanLine, ...]:
    """Every line that may apply to some model with these runtimes."""
    return tuple(line for line in LINES if line.runtime in runtimes)


def default_candidates(target: TargetSpec, prepare: PrepareReport) -> tuple[PlannedCandidate, ...]:
    """The lines that apply to this model on this target. A source that came quantized is not quantized again unless it is dequantized first."""
    facts = Facts(target, prepare)
    candidates = [line.candidate(target) for line in default_lines(frozenset(target.runtimes)) if line.when(facts)]
    return tuple(candidate for candidate in candidates if not (candidate.quantizes_source and prepare.traits.quantized))
