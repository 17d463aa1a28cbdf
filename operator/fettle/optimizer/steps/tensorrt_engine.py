"""Engines of both TensorRT libraries: the model in its precision, compiled for one architecture and one range of batch sizes."""

from __future__ import annotations

from pathlib import Path

from fettle.api.recipe import OptimizeGraphStep
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import RecipeError
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx.sparse import sparse_products
from fettle.optimizer.steps import Work
from fettle.optimizer.steps.onnx_precision import in_precision, required
from fettle.runtimes import base
from fettle.runtimes.engine import EngineRuntime
from fettle.runtimes.engine_build import EngineOptions, profiles_of

_ENDS = {RuntimeName.TENSORRT: ".engine", RuntimeName.TENSORRT_RTX: ".rtx"}


def compile_engine(work: Work[OptimizeGraphStep]) -> Path:
    """The engine of a model. Raises RecipeError, and RuntimeFailure with what the library refuses."""
    device = required(work)
    form, runtime = device.form, base.get(device.family)
    if not isinstance(runtime, EngineRuntime) or form.architecture is None:
        raise RecipeError(f"{device.family} builds no engine for the architecture {form.architecture}")
    cast = work.folder / "cast" / "model.onnx"
    cast.parent.mkdir()
    in_precision(work.entry, cast, form.precision)
    profiles = profiles_of(device.signature, form.batch_size, form.batch_sizes)
    target = work.folder / f"model{_ENDS[device.family]}"
    sparse, products = sparse_products(onnx_model.load(cast), cast.parent)
    options = EngineOptions(tf32=form.precision == Precision.TF32, sparse=sparse > 0, timings=device.timings)
    note = runtime.build(cast, target, form.architecture, profiles, options)
    tuned = f", tuned for {len(profiles)} ranges of batch sizes" if len(profiles) > 1 else ""
    work.notes.append(
        f"an engine of {note.library} {note.version} for {note.architecture}{tuned}, {target.stat().st_size} bytes"
    )
    if sparse:
        work.notes.append(
            f"{sparse} of {products} products have 2:4 sparse weights, for which the library may use sparse kernels"
        )
    return target
