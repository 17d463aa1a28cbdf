"""The words of both kinds: enums, and the strings that have a form."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

Uri = Annotated[str, Field(min_length=1, max_length=1024)]


Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


# `module:callable`, as entry points of Python packages are written.
CALLABLE = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


# As the API server writes it for a Pod; an int is a quantity too.
Quantity = Annotated[
    int | str,
    Field(json_schema_extra={"pattern": r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"}),
]


class FormatName(StrEnum):
    """Format of the source model."""

    AUTO = "Auto"
    ONNX = "ONNX"
    TORCH_SCRIPT = "TorchScript"
    TORCH_EXPORT = "TorchExport"
    TORCH_MODULE = "TorchModule"
    KERAS = "Keras"
    SAVED_MODEL = "SavedModel"
    FROZEN_GRAPH = "FrozenGraph"
    TFLITE = "TFLite"
    SCIKIT_LEARN = "ScikitLearn"
    XGBOOST = "XGBoost"
    LIGHTGBM = "LightGBM"
    CATBOOST = "CatBoost"
    HUGGING_FACE = "HuggingFace"
    MLFLOW = "MLflow"


class Metric(StrEnum):
    """How good an output is. `api/metrics.py` has a row for each but Auto, which is what the answers show that the model is for, or Accuracy."""

    AUTO = "Auto"
    ACCURACY = "Accuracy"
    F1 = "F1"
    MEAN_SQUARED_ERROR = "MeanSquaredError"
    COSINE_SIMILARITY = "CosineSimilarity"
    REGRESSION = "Regression"
    TOP_K = "TopK"
    MULTI_LABEL = "MultiLabel"
    RANKING = "Ranking"
    DETECTION = "Detection"
    SEGMENTATION = "Segmentation"
    TEXT = "Text"
    EMBEDDING = "Embedding"
    CUSTOM = "Custom"
    AGREEMENT = "Agreement"


class Average(StrEnum):
    """How F1 is averaged over classes."""

    MACRO = "Macro"
    MICRO = "Micro"
    BINARY = "Binary"


class SeveralLabels(StrEnum):
    """What labels that name several classes for one item ask for."""

    ANY_OF = "AnyOf"
    ALL_OF = "AllOf"


class AgreementMode(StrEnum):
    """When two answers to one item count as the same."""

    AUTO = "Auto"
    TOP_ONE = "TopOne"
    EXACT = "Exact"
    COSINE = "Cosine"
    ELEMENTWISE = "Elementwise"


class UnsureItems(StrEnum):
    """Whether items on which the original itself is unsure count in the agreement with it."""

    COUNT = "Count"
    SKIP = "Skip"


class Layout(StrEnum):
    """Order of an image's dimensions."""

    CHANNELS_FIRST = "NCHW"
    CHANNELS_LAST = "NHWC"


class Color(StrEnum):
    """Channels of an image, in their order."""

    RGB = "RGB"
    BGR = "BGR"
    GRAYSCALE = "Grayscale"


class RuntimeName(StrEnum):
    """What runs an artifact."""

    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    TORCHSCRIPT = "torchscript"
    INDUCTOR = "inductor"
    LITERT = "litert"
    ONNXRUNTIME_CUDA = "onnxruntime-cuda"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"
    TORCHSCRIPT_CUDA = "torchscript-cuda"


class DeviceKind(StrEnum):
    """What computes."""

    CPU = "cpu"
    NVIDIA = "nvidia"


# Compute capability of an NVIDIA GPU: sm89 is 8.9.
Architecture = Annotated[str, Field(pattern=r"^sm[0-9]{2,3}$", max_length=8)]

# What the files of a model in the store are. SavedModel is only built from; AOTInductor is machine code; the last two are one library's engines each.
ModelFormat = Literal[
    "ONNX", "OpenVINO", "TorchScript", "TorchExport", "AOTInductor", "SavedModel", "TFLite", "TensorRT", "TensorRT-RTX"
]


class Precision(StrEnum):
    """Precision in which a runtime computes what is not quantized: a setting, not a step.

    TF32: float32 whose products are rounded to 10 bits behind the point, which GPUs have from sm80 on.
    """

    FLOAT32 = "Float32"
    TF32 = "TF32"
    BFLOAT16 = "BFloat16"
    FLOAT16 = "Float16"


class StepKind(StrEnum):
    """A recipe step's key in the API; quantization is one kind per mode and pruning one per method, for each needs other things."""

    OPTIMIZE_GRAPH = "optimizeGraph"
    DEQUANTIZE = "dequantize"
    QUANTIZE_STATIC = "quantizeStatic"
    QUANTIZE_DYNAMIC = "quantizeDynamic"
    QUANTIZE_MIXED = "quantizeMixed"
    QUANTIZE_AWARE = "quantizeAware"
    QUANTIZE_FLOAT16 = "quantizeFloat16"
    QUANTIZE_BFLOAT16 = "quantizeBFloat16"
    QUANTIZE_FLOAT8 = "quantizeFloat8"
    QUANTIZE_WEIGHT_ONLY = "quantizeWeightOnly"
    QUANTIZE_WEIGHT_ONLY_INT4 = "quantizeWeightOnlyInt4"
    PRUNE_STRUCTURED = "pruneStructured"
    PRUNE_MAGNITUDE = "pruneMagnitude"
    PRUNE_NM = "pruneNM"
    LOW_RANK = "lowRank"
    REPLACE = "replace"
    DISTILL = "distill"


class QuantizeMode(StrEnum):
    """Dynamic: weights int8, activations measured at run time. Static: both int8, ranges from calibration data.

    Mixed: as Static, but the layers that change too many answers stay in floating point. Aware: the model is trained to answer well in int8,
    then quantized as in Static. Float16: weights are stored in float16, and nothing is int8. BFloat16: the layers that change too many
    answers in precision BFloat16 stay in float32. Float8: as Static, in 8-bit floating point. WeightOnly, WeightOnlyInt4: weights of matrix
    products are stored in 8 or 4 bits, without ranges of activations.
    """

    DYNAMIC = "Dynamic"
    STATIC = "Static"
    MIXED = "Mixed"
    AWARE = "Aware"
    FLOAT16 = "Float16"
    BFLOAT16 = "BFloat16"
    FLOAT8 = "Float8"
    WEIGHT_ONLY = "WeightOnly"
    WEIGHT_ONLY_INT4 = "WeightOnlyInt4"


class QuantizePreset(StrEnum):
    """Which layers and ranges the quantizer treats specially."""

    DEFAULT = "Default"
    TRANSFORMER = "Transformer"


class PruneMethod(StrEnum):
    """Which weights are removed. Structured: whole parts (PruneUnit). Magnitude: the smallest weights. NM: n of every m neighboring weights stay."""

    STRUCTURED = "Structured"
    MAGNITUDE = "Magnitude"
    NM = "NM"


class PruneUnit(StrEnum):
    """What structured pruning removes: channels of layers, heads of attention, or residual blocks."""

    CHANNELS = "Channels"
    HEADS = "Heads"
    BLOCKS = "Blocks"


class Importance(StrEnum):
    """What a channel or a head is worth: the size of its weights, or what the loss would change by without it (first-order Taylor expansion)."""

    MAGNITUDE = "Magnitude"
    TAYLOR = "Taylor"


class Granularity(StrEnum):
    """Where the smallest weights are looked for."""

    LAYER = "Layer"
    GLOBAL = "Global"


class Optimizer(StrEnum):
    """How weights follow their gradients."""

    ADAM_W = "AdamW"
    SGD = "SGD"


class TrainingLoss(StrEnum):
    """What a training minimizes on labels. Auto follows from the metric and the labels; Custom is a function of the user's own."""

    AUTO = "Auto"
    CROSS_ENTROPY = "CrossEntropy"
    BINARY_CROSS_ENTROPY = "BinaryCrossEntropy"
    MEAN_SQUARED_ERROR = "MeanSquaredError"
    MEAN_ABSOLUTE_ERROR = "MeanAbsoluteError"
    CTC = "CTC"
    CUSTOM = "Custom"


class Schedule(StrEnum):
    """How the learning rate changes over the training."""

    COSINE = "Cosine"
    CONSTANT = "Constant"


class Augmentation(StrEnum):
    """A random change of images while a model trains."""

    HORIZONTAL_FLIP = "HorizontalFlip"
    VERTICAL_FLIP = "VerticalFlip"
    CROP = "Crop"
    SHIFT = "Shift"
    NOISE = "Noise"


class Objective(StrEnum):
    """What to prefer among the candidates that pass every constraint."""

    LATENCY = "Latency"
    THROUGHPUT = "Throughput"
    SIZE = "Size"


class SearchStrategy(StrEnum):
    """How many candidates are measured in full."""

    PRUNING = "Pruning"
    EXHAUSTIVE = "Exhaustive"


class CandidateState(StrEnum):
    """Where a candidate stands."""

    PENDING = "Pending"
    RUNNING = "Running"
    MEASURED = "Measured"
    FAILED = "Failed"
    REJECTED = "Rejected"
    SELECTED = "Selected"


class Evidence(StrEnum):
    """What a claim about accuracy rests on."""

    LABELS = "Labels"
    AGREEMENT = "Agreement"
    GENERATED = "Generated"


class Basis(StrEnum):
    """What was timed as the baseline."""

    SOURCE_RUNTIME = "SourceRuntime"
    PORTABLE_FORM = "PortableForm"
