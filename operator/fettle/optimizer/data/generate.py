"""Inputs that a graph accepts, where nobody gave any. They prove that two forms of one model answer alike, never how well it answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from fettle.api.optimizedmodel import InputSpec
from fettle.api.reasons import Reason
from fettle.api.signature import Signature, Tensor
from fettle.errors import DataError, RuntimeFailure
from fettle.optimizer.data.columns import Array
from fettle.optimizer.data.items import Items
from fettle.optimizer.onnx.inputs import Hint
from fettle.runtimes.base import numpy_dtype

COUNT = 64
MOST_NUMBERS = 1 << 27  # of an item that is made up: a gigabyte while it is drawn
COUNT_SLOW = 16  # for models that take long: judging runs every item in every candidate
# Tried for dimensions that vary, other than the batch. Pooling leaves nothing of a small image, and runtimes disagree about nothing.
SIZES = (16, 32, 64, 224, 128, 8, 1, 512)
IMAGE_SIZES = (64, 224, 48, 32, 128, 16, 8, 1, 512)
WORDS = ("yes", "no", "red", "green", "blue", "one", "two", "three", "hello world", "a longer text with some words")
RunModel = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True)
class Recipe:
    """One way to make values: `floats` names the distribution, `size` fills dimensions that vary."""

    floats: str
    integers: int
    size: int


@dataclass(frozen=True)
class Generator:
    """Makes items for a signature. The same seed makes the same items."""

    signature: Signature
    hints: Mapping[str, Hint]
    specs: Mapping[str, InputSpec]
    axes: Mapping[str, int]
    seed: int

    def items(self, recipe: Recipe, count: int) -> Items:
        """`count` items, whole, made by `recipe`. Raises DataError (EvaluationDataMissing) for items that are too large for that."""
        for tensor in self.signature.inputs:
            shape = self._shape(tensor, recipe.size)
            if math.prod(shape) > MOST_NUMBERS:
                message = f"one item of the input {tensor.name!r} would have the shape {list(shape)}, which is too large to generate"
                raise DataError(message, reason=Reason.EVALUATION_DATA_MISSING)
        generator = np.random.default_rng(self.seed)
        arrays = {
            tensor.name: self._values(tensor, recipe, (count, *self._shape(tensor, recipe.size)), generator)
            for tensor in self.signature.inputs
        }
        return Items(arrays)

    def _shape(self, tensor: Tensor, size: int) -> tuple[int, ...]:
        axis = self.axes.get(tensor.name)
        return tuple(1 if place == axis else (size if found < 0 else found) for place, found in enumerate(tensor.shape))

    def _values(self, tensor: Tensor, recipe: Recipe, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
        hint = self.hints.get(tensor.name, Hint())
        spec = self.specs.get(tensor.name)
        if tensor.dtype == "BYTES":
            words = np.array(hint.words or WORDS, dtype=object)
            chosen: Array = words[generator.integers(0, len(words), shape)]
            return chosen
        dtype = numpy_dtype(tensor.dtype)
        if spec is not None and spec.range is not None:
            low, high = spec.range.min, spec.range.max
            if dtype.kind in "iu":
                return generator.integers(int(low), int(high) + 1, shape).astype(dtype)
            return generator.uniform(low, high, shape).astype(dtype)
        if "mask" in tensor.name.lower():
            return np.ones(shape, dtype)
        if dtype.kind == "b":
            return generator.integers(0, 2, shape).astype(dtype)
        if dtype.kind in "iu":
            return _integers(hint, recipe, dtype, shape, generator)
        return _floats(recipe, shape, generator).astype(dtype)


def _integers(
    hint: Hint, recipe: Recipe, dtype: np.dtype[np.generic], shape: tuple[int, ...], generator: np.random.Generator
) -> Array:
    if hint.numbers:
        numbers = np.array(hint.numbers, dtype)
        chosen: Array = numbers[generator.integers(0, len(numbers), shape)]
        return chosen
    bound = hint.rows or (256 if dtype == np.uint8 else recipe.integers)
    return generator.integers(0, max(bound, 1), shape).astype(dtype)


def _floats(recipe: Recipe, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    if recipe.floats == "normal":
        return generator.standard_normal(shape)
    if recipe.floats == "pixels":
        return generator.uniform(0, 255, shape)
    return generator.uniform(0, 1, shape)


def _recipes(signature: Signature, axes: Mapping[str, int]) -> Iterator[Recipe]:
    """Ways to try, likely ones first; only those that can differ for this signature."""
    inputs = signature.inputs
    ranks = [
        len(t.shape) for t in inputs for place, size in enumerate(t.shape) if size < 0 and place != axes.get(t.name)
    ]
    sizes = IMAGE_SIZES if max(ranks, default=0) >= 4 else SIZES
    floats = (
        ("normal", "unit", "pixels") if any(t.dtype in ("FP32", "FP64", "FP16", "BF16") for t in inputs) else ("unit",)
    )
    integers = (10, 2, 1) if any(t.dtype.startswith(("INT", "UINT")) for t in inputs) else (10,)
    for size, bound, distribution in product(sizes if ranks else sizes[:1], integers, floats):
        yield Recipe(distribution, bound, size)


def find(generator: Generator, run: RunModel) -> Recipe:
    """The first way to make inputs that the model runs on, with finite answers. Raises DataError (EvaluationDataMissing)."""
    loops = [name for name, hint in generator.hints.items() if hint.trip_count and name not in generator.specs]
    if loops:
        message = f"the inputs {loops} set the number of iterations of a loop, which cannot be generated: set source.inputs[].value for them"
        raise DataError(message, reason=Reason.EVALUATION_DATA_MISSING)
    last = "the model returned NaN or infinity"
    accepted: Recipe | None = None
    for recipe in _recipes(generator.signature, generator.axes):
        try:
            items = generator.items(recipe, 2)
            answers = [run(items.whole(index)) for index in range(2)]
        except (DataError, RuntimeFailure) as error:
            last = error.message
            continue
        accepted = accepted or recipe
        if all(_finite(answer.values()) for answer in answers):
            return recipe
    if accepted is not None:
        return accepted
    message = (
        "could not generate an input that the model accepts: set data.evaluation, or source.inputs[].range, shape or value "
        f"({last})"
    )
    raise DataError(message, reason=Reason.EVALUATION_DATA_MISSING)


def _finite(values: Iterable[Array]) -> bool:
    return all(bool(np.isfinite(value).all()) for value in values if value.dtype.kind == "f")
