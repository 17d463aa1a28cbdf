"""Programs of torch.export, compiled by PyTorch's AOTInductor into one package with machine code for the CPU at hand."""

from __future__ import annotations

import platform
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch._inductor import aoti_compile_and_package, config
from torch._inductor.utils import fresh_cache

from fettle.api.executed import Executed
from fettle.api.recipe import OptimizeGraphStep
from fettle.errors import RecipeError
from fettle.optimizer.steps import Work
from fettle.optimizer.steps.onnx_precision import required
from fettle.runtimes import cpu
from fettle.runtimes.inductor import NOTE, PackageNote
from fettle.runtimes.torchscript import CLASSES, open_program

ENTRY = "model.aoti"  # a program's file ends in .pt2, as PyTorch would have a package's too
_SOURCE = ".pt2"
# Operators that compute, each of them once.
_COMPUTE = {"convolution", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
_COMPUTE |= {"linear", "addmm", "mm", "bmm", "baddbmm", "matmul", "dot", "mv", "einsum", "lstm", "gru"}
_COMPUTE |= {"scaled_dot_product_attention"}


def compile_program(work: Work[OptimizeGraphStep]) -> Path:
    """The package of a program. Raises RecipeError, and whatever PyTorch raises."""
    if work.entry.suffix != _SOURCE:
        raise RecipeError("inductor compiles the source in one step: leave the others out of the recipe")
    threads = required(work).form.threads
    _require_compiler()
    program = open_program(work.entry).exported
    here = cpu.detect()
    note = PackageNote(architecture=here.architecture, requires=cpu.features(here), executed=_layers(program))
    made = work.folder / f"package{_SOURCE}"
    with fresh_cache(dir=str(work.folder)), torch.no_grad():
        aoti_compile_and_package(program, package_path=str(made), inductor_configs=_options(threads, note))
    return made.rename(work.folder / ENTRY)


def _options(threads: int | None, note: PackageNote) -> dict[str, Any]:
    """How a program is compiled. Weights are constants, so that they are stored as the kernels want them."""
    return {
        "freezing": True,
        "cpp.threads": threads or 1,
        "cpp.dynamic_threads": (threads or 1) > 1,  # a pod may be given another number
        "cpp.vec_isa_ok": True,  # else a library is loaded to see whether it works, and slower code is written where that takes a minute
        # Nothing but what the chosen vectors need, instead of all that this very CPU has: `requires` says that.
        "cpp.march": "",
        # No word of `requires` stands for the longer vectors of arm64.
        "cpp.simdlen": None if platform.machine() == "x86_64" else 128,
        "aot_inductor.metadata": {NOTE: note.canonical().decode()},
    }


def _require_compiler() -> None:
    """Raises RecipeError where nothing here compiles C++."""
    compiler = config.cpp.cxx[-1]
    if compiler is None or shutil.which(compiler) is None:
        message = (
            f"inductor compiles models to machine code, and there is no C++ compiler here ({compiler}, the default of the environment variable "
            "CXX): install one, such as Debian's package g++, or remove inductor from the target's runtimes"
        )
        raise RecipeError(message)
    if not (Path(torch.__file__).parent / "include").is_dir():
        raise RecipeError("inductor needs PyTorch's C++ headers, which this image lacks: use the image optimizer-torch")


def _layers(program: Any) -> Executed:
    """The layers that compute, by their precision."""
    computing = [node for node in program.graph.nodes if getattr(node.target, "_opname", "") in _COMPUTE]
    kinds = Counter(CLASSES.get(_answer(node).dtype, "f32") for node in computing)
    return Executed(**kinds, total=kinds.total())


def _answer(node: Any) -> Any:
    """The tensor that an operator answers, the first of several."""
    value = node.meta["val"]
    return value[0] if isinstance(value, (tuple, list)) else value
