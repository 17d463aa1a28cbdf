"""Which libraries each image has, and which image serves a piece of work: the smallest that has all that its rows in the catalog ask for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from fettle.api import catalog, formats
from fettle.api.recipe import RecipeStep
from fettle.api.vocabulary import RuntimeName


class Image(StrEnum):
    """Image of a Job or of a serving pod: a slim one, or one with a large framework on top."""

    OPTIMIZER = "optimizer"
    OPTIMIZER_TENSORFLOW = "optimizer-tensorflow"
    OPTIMIZER_GPU = "optimizer-gpu"
    OPTIMIZER_TORCH = "optimizer-torch"
    OPTIMIZER_TRANSFORMERS = "optimizer-transformers"
    OPTIMIZER_SKLEARN = "optimizer-sklearn"
    OPTIMIZER_GPU_TORCH = "optimizer-gpu-torch"
    SERVER = "server"
    SERVER_LITERT = "server-litert"
    SERVER_TORCH = "server-torch"
    SERVER_GPU = "server-gpu"
    SERVER_GPU_TORCH = "server-gpu-torch"


@dataclass(frozen=True)
class ImageEntry:
    """An image, and the libraries in it that rows ask for. `serves`: serving pods run it, not Jobs."""

    image: Image
    libraries: frozenset[str]
    serves: bool = False


DEFAULT_REPOSITORY = "ghcr.io/fettle"  # where the chart and the settings expect images whose names they are not told

_SERVED = frozenset({"numpy", "onnxruntime", "openvino"})
_OPTIMIZING = _SERVED | {"nncf", "onnx", "onnx-ir", "onnxconverter-common", "safetensors"}
_TRAINING = frozenset({"onnx2pytorch", "onnxscript", "tensorly", "torch", "torch-pruning"})
_ON_GPUS = frozenset({"cuda-bindings", "onnxruntime-gpu", "tensorrt-cu12", "tensorrt-rtx-cu12"})
_TORCH_ON_GPUS = _ON_GPUS | {"cuda-toolkit", "onnx", "onnxscript", "torch"}

# Of Jobs and of servers, each from small to large.
IMAGES: tuple[ImageEntry, ...] = (
    ImageEntry(Image.OPTIMIZER, _OPTIMIZING),
    ImageEntry(Image.OPTIMIZER_TENSORFLOW, _OPTIMIZING | {"ai-edge-litert", "keras", "tensorflow-cpu", "tf2onnx"}),
    ImageEntry(Image.OPTIMIZER_GPU, _OPTIMIZING | _ON_GPUS),
    ImageEntry(Image.OPTIMIZER_TORCH, _OPTIMIZING | _TRAINING),
    ImageEntry(Image.OPTIMIZER_TRANSFORMERS, _OPTIMIZING | _TRAINING | {"transformers"}),
    ImageEntry(Image.OPTIMIZER_SKLEARN, _OPTIMIZING | formats.TABLES),
    ImageEntry(Image.OPTIMIZER_GPU_TORCH, _OPTIMIZING | _TORCH_ON_GPUS),
    ImageEntry(Image.SERVER, _SERVED, serves=True),
    ImageEntry(Image.SERVER_LITERT, _SERVED | {"ai-edge-litert"}, serves=True),
    ImageEntry(Image.SERVER_TORCH, _SERVED | {"onnx", "onnxscript", "torch"}, serves=True),
    ImageEntry(Image.SERVER_GPU, _SERVED | _ON_GPUS, serves=True),
    ImageEntry(Image.SERVER_GPU_TORCH, _SERVED | _TORCH_ON_GPUS, serves=True),
)


def job_image(libraries: Iterable[str]) -> ImageEntry | None:
    """The smallest image of Jobs that has all of `libraries`; None where none has."""
    return _smallest(frozenset(libraries), serves=False)


def build_libraries(family: RuntimeName, steps: Iterable[RecipeStep]) -> frozenset[str]:
    """What a build needs: the libraries of its steps, and of the runtime that loads what they made. Steps that train bring their own."""
    entries = [entry for each in steps if (entry := catalog.step(each, family)) is not None]
    loader = catalog.TRAINER if any(entry.trains for entry in entries) else family
    return catalog.runtime(loader).libraries.union(*(entry.libraries for entry in entries))


def segments(family: RuntimeName, steps: Iterable[RecipeStep]) -> tuple[tuple[RecipeStep, ...], ...]:
    """`steps` in as few parts as there must be for each to find an image with all it needs, one part where one image has everything.

    A step that trains is a part of its own: its hours are not to be lost with what comes behind it. Empty where no image has what one
    of them needs.
    """
    parts: list[tuple[RecipeStep, ...]] = []
    for each in steps:
        alone = not parts or catalog.trains(each) or catalog.trains(parts[-1][-1])
        joined = (each,) if alone else (*parts[-1], each)
        if not alone and job_image(build_libraries(family, joined)) is not None:
            parts[-1:] = [joined]
        elif job_image(build_libraries(family, (each,))) is not None:
            parts.append((each,))
        else:
            return ()
    return tuple(parts)


def server_image(name: RuntimeName) -> Image:
    """The smallest image that serves with that runtime. Every runtime has one: a test holds the rows to it."""
    entry = _smallest(catalog.runtime(name).libraries, serves=True)
    if entry is None:
        raise LookupError(f"no image serves with {name}")
    return entry.image


def of_default(reference: str) -> Image | None:
    """The image that `reference` names where nobody chose its name; None for a name that somebody chose."""
    repository, _, name = reference.partition(":")[0].rpartition("/")
    return Image(name) if repository == DEFAULT_REPOSITORY and name in set(Image) else None


def chart_value(image: Image) -> str:
    """The value of the chart that names an image: 'image.optimizerSklearn.repository'."""
    first, *others = image.value.split("-")
    return f"image.{first}{''.join(word.title() for word in others)}.repository"


def _smallest(libraries: frozenset[str], *, serves: bool) -> ImageEntry | None:
    return next((entry for entry in IMAGES if entry.serves == serves and libraries <= entry.libraries), None)
