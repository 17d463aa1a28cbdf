"""PyTorch on the CPU (`torchscript_cuda`: on a GPU): TorchScript archives, and programs of torch.export as eager graphs.

Facts that this file rests on (2.15): the number of threads belongs to the process, so one process holds sessions of one `threads` only,
which the effective settings show; the interpreter of TorchScript is thread-safe, as is a graph module that changes no buffer; an archive
that was saved in training mode would drop activations at random, so every script runs in evaluation mode; a program of torch.export
checks the ranges of its dimensions at each call.
A script is code of TorchScript's interpreter, and a program may hold Python (see `torch_program`): both are loaded only in Jobs, in serving pods
and in the processes of `fettle optimize`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fettle.api.executed import Executed
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.text import clip
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import RuntimeFailure
from fettle.runtimes import torch_program
from fettle.runtimes.base import (
    Array,
    Arrays,
    Interrupt,
    Interrupted,
    Session,
    checked_inputs,
    numpy_dtype,
    require_file,
    require_settings,
)
from fettle.runtimes.torch_archive import Contents, contents

OUTPUT = "output"
# Operators that compute, as the profiler names them; each of them once, not what calls it and what it calls.
COMPUTE = frozenset(
    {"aten::convolution", "aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::lstm", "aten::gru"}
)
COMPUTE |= {"aten::dot", "aten::mv", "aten::_scaled_dot_product_flash_attention_for_cpu"}
CLASSES = {torch.bfloat16: "bf16", torch.float16: "f16"}


@dataclass(frozen=True)
class Program:
    """A loaded PyTorch file. `inputs` are the names of its input tensors, and `call` takes the tensors in that order.

    The last `optional` inputs of a script have a default and may be left out.
    """

    module: Any
    inputs: tuple[str, ...]
    call: Callable[[Sequence[torch.Tensor]], Any]
    optional: int = 0
    exported: Any = None  # torch.export.ExportedProgram


def open_program(entry: Path, device: str = "cpu") -> Program:
    """Load the file at `entry`: a script to `device`, a program of torch.export to the device that it was exported on.

    Raises RuntimeFailure: ModelLoadFailed, UnsafeCode, UnsupportedOperator, UnsupportedModel.
    """
    require_file(entry)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit is on its way out; its files are not
            if contents(entry) == Contents.EXPORT:
                return exported_program(torch_program.load(entry))
            return _script(torch.jit.load(str(entry), map_location=device).eval())
    except RuntimeFailure:
        raise
    except Exception as error:  # the library raises what it likes for a damaged file
        raise failure("PyTorch could not load the model", error) from error


def _script(module: Any) -> Program:
    arguments = module.forward.schema.arguments[1:]  # the first is the module
    for argument in arguments:
        if str(argument.type) not in ("Tensor", "Optional[Tensor]") and not argument.has_default_value():
            message = f"the input {argument.name!r} is of type {argument.type}; inputs must be plain tensors, or have a default value"
            raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_MODEL)
    given = [argument for argument in arguments if str(argument.type) in ("Tensor", "Optional[Tensor]")]
    optional = sum(argument.has_default_value() for argument in given)
    names = tuple(argument.name for argument in given)
    return Program(module, names, _by_name(module, names), optional)


def _by_name(module: Any, names: tuple[str, ...]) -> Callable[[Sequence[torch.Tensor]], Any]:
    """A function that calls a script with its tensors by name; arguments of other types keep their defaults."""
    return lambda tensors: module(**dict(zip(names, tensors, strict=False)))


def exported_program(program: Any) -> Program:
    """A `Program` for an exported program of torch.export."""
    module = program.module()
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    slots = [spec.arg for spec in specs]
    # Arguments that are no tensors were fixed when the program was exported.
    constants = {place: slot.value for place, slot in enumerate(slots) if hasattr(slot, "value")}
    names = tuple(slot.name for place, slot in enumerate(slots) if place not in constants)

    def call(tensors: Sequence[torch.Tensor]) -> Any:
        waiting = iter(tensors)
        leaves = [constants[place] if place in constants else next(waiting) for place in range(len(slots))]
        args, kwargs = torch.utils._pytree.tree_unflatten(leaves, program.call_spec.in_spec)
        return module(*args, **kwargs)

    return Program(module, names, call, exported=program)


def named_outputs(answer: Any, name: str = "") -> dict[str, torch.Tensor]:
    """The output tensors with stable names: `output`; `output_0`, `output_1`, … for a tuple; the keys of a dictionary.

    Raises RuntimeFailure (UnsupportedModel) for anything other than tensors of real numbers.
    """
    if isinstance(answer, torch.Tensor) and not answer.is_complex():
        return {name or OUTPUT: answer}
    if isinstance(answer, Mapping):
        parts = [(f"{name}_{key}" if name else str(key), value) for key, value in answer.items()]
    elif isinstance(answer, (list, tuple)):
        parts = [(f"{name or OUTPUT}_{index}", value) for index, value in enumerate(answer)]
    else:
        kind = answer.dtype if isinstance(answer, torch.Tensor) else type(answer).__name__
        message = f"the output {name or OUTPUT!r} is of type {kind}; outputs must be plain tensors of real numbers"
        raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_MODEL)
    return {inner: tensor for part, value in parts for inner, tensor in named_outputs(value, part).items()}


class TorchScriptSession:
    """A program and its requested settings."""

    def __init__(self, program: Program, settings: RuntimeSettings, signature: Signature) -> None:
        self._program: Program | None = program
        self._settings = settings
        self._signature = signature

    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """See `base.Session.infer`. PyTorch cannot be stopped: an interrupted run continues to its end, and its result is dropped."""
        if self._program is None:
            raise RuntimeFailure("the session is closed")
        feed = checked_inputs(self._signature, inputs)
        try:
            with (interrupt or Interrupt()).ending(lambda: None), torch.inference_mode():
                answers = self.answers(self._program, feed)
            if interrupt is not None and interrupt.is_set:
                raise Interrupted
        except (RuntimeFailure, Interrupted):
            raise
        except Exception as error:  # the library raises RuntimeError, AssertionError and others alike
            raise failure("running the model failed", error) from error
        return {tensor.name: to_array(answers[tensor.name]) for tensor in self._signature.outputs}

    def answers(self, program: Program, feed: Arrays) -> dict[str, torch.Tensor]:
        """The outputs of a run by name, in the host's memory. `feed`: the inputs in the program's order."""
        return self.named(program.call([to_tensor(array) for array in feed.values()]))

    def named(self, answer: Any) -> dict[str, torch.Tensor]:
        """What a program returned, by name. Raises RuntimeFailure (OutputsInvalid) where an output of the signature is missing."""
        found = named_outputs(answer)
        absent = [tensor.name for tensor in self._signature.outputs if tensor.name not in found]
        if absent:
            raise RuntimeFailure(
                f"the outputs {absent} are missing; found {sorted(found)}", reason=Reason.OUTPUTS_INVALID
            )
        return found

    def effective_settings(self) -> RuntimeSettings:
        """See `base.Session.effective_settings`."""
        return self._settings.model_copy(update={"threads": torch.get_num_threads()})

    def close(self) -> None:
        """See `base.Session.close`."""
        self._program = None


class TorchScript:
    """See `base.Runtime`."""

    name = RuntimeName.TORCHSCRIPT
    compute = COMPUTE

    def load(self, entry: Path, settings: RuntimeSettings, signature: Signature | None = None) -> Session:
        """See `base.Runtime.load`. `signature` is required, because the files do not describe their inputs.

        `graph_optimization` freezes a script and prepares it for oneDNN. This is not possible for an exported program.
        """
        self.require(settings)
        if signature is None:
            raise RuntimeFailure("PyTorch's files do not say what their inputs are: a signature is needed")
        program = self.open(entry)
        torch.set_num_threads(settings.threads)
        if settings.graph_optimization:
            program = self.optimized(program)
        session = self.session(program, settings, signature)
        require_settings(session, settings, "PyTorch")
        return session

    def require(self, settings: RuntimeSettings) -> None:
        """Raises RuntimeFailure (RecipeNotApplicable) for settings that no model has here."""
        if settings.precision != Precision.FLOAT32 or settings.batch_size is not None or settings.streams != 1:
            message = f"{self.name} only supports the model's own precision, without a fixed batch size or streams"
            raise RuntimeFailure(message, reason=Reason.RECIPE_NOT_APPLICABLE)

    def open(self, entry: Path) -> Program:
        """The program at `entry`, on the device that runs it. Raises RuntimeFailure."""
        return open_program(entry)

    def optimized(self, program: Program) -> Program:
        """What runs with `graph_optimization`. Raises RuntimeFailure."""
        return _optimized(program)

    def session(self, program: Program, settings: RuntimeSettings, signature: Signature) -> TorchScriptSession:
        """A session of a program from `open`."""
        return TorchScriptSession(program, settings, signature)

    def fused(self, entry: Path) -> int:
        """The number of operators that freezing fuses into nodes which tell the profiler nothing: oneDNN's."""
        nodes = _optimized(open_program(entry)).module.graph.findAllNodes
        return sum(len(nodes(kind, True)) for kind in ("prim::mkldnn_convolution", "prim::mkldnn_linear"))

    def executed(
        self, entry: Path, settings: RuntimeSettings, inputs: Arrays, signature: Signature | None = None
    ) -> Executed:
        """See `base.Runtime.executed`: counts the operators that the profiler saw in one run; their class is that of the weights."""
        session = self.load(entry, settings, signature)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            session.infer(inputs)
        fused = self.fused(entry) if settings.graph_optimization else 0
        weights = open_program(entry).module.parameters()
        kinds = Counter(tensor.dtype for tensor in weights if tensor.is_floating_point())
        kind = CLASSES.get(kinds.most_common(1)[0][0], "f32") if kinds else "f32"
        names = [event.name for event in profile.events()]
        int8 = sum(name.startswith("quantized::") for name in names)
        plain = sum(name in self.compute for name in names) + fused
        return Executed(**{kind: plain}, int8=int8, total=plain + int8)

    def capabilities(self) -> frozenset[Precision]:
        """See `base.Runtime.capabilities`."""
        return frozenset({Precision.FLOAT32})


def _optimized(program: Program) -> Program:
    if program.exported is not None:
        message = "freezing and fusing is only supported for TorchScript, not for torch.export"
        raise RuntimeFailure(message, reason=Reason.RECIPE_NOT_APPLICABLE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            module = torch.jit.optimize_for_inference(torch.jit.freeze(program.module))
        except Exception as error:
            raise failure("PyTorch could not optimize the script", error) from error
    return Program(module, program.inputs, _by_name(module, program.inputs), program.optional)


def to_tensor(array: Array) -> torch.Tensor:
    """`array` as a tensor through which a model cannot change the caller's memory. Raises RuntimeFailure for text."""
    require_numbers(array)
    owned = np.array(array)
    if owned.dtype == numpy_dtype("BF16"):
        return torch.from_numpy(owned.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(owned)


def require_numbers(array: Array) -> None:
    """Raises RuntimeFailure (UnsupportedModel) for text."""
    if array.dtype.kind in "OSU":
        raise RuntimeFailure("PyTorch has no tensors of text", reason=Reason.UNSUPPORTED_MODEL)


def to_array(tensor: torch.Tensor) -> Array:
    """`tensor` as an array with its own memory, because an output may be a view of an input or of a weight."""
    whole = tensor.detach().to_dense() if tensor.is_mkldnn or tensor.is_sparse else tensor.detach()
    if whole.dtype == torch.bfloat16:
        return np.array(whole.contiguous().view(torch.int16).numpy()).view(numpy_dtype("BF16"))
    return np.array(whole.resolve_conj().resolve_neg().numpy())


def failure(what: str, error: Exception) -> RuntimeFailure:
    """The error with the relevant part of the library's message."""
    text = " ".join(str(error).split())
    # What TorchScript's interpreter raises is no longer of that class.
    if isinstance(error, torch.OutOfMemoryError) or "CUDA out of memory" in text:
        found = text[text.rfind("CUDA out of memory") :] if "CUDA out of memory" in text else text
        return RuntimeFailure(
            f"the GPU, or this pod, is out of memory: {clip(found, 300)}", reason=Reason.OUT_OF_MEMORY
        )
    reason = Reason.MODEL_LOAD_FAILED
    if "Unknown builtin op" in text or "Could not find schema" in text or "unknown operator" in text.lower():
        reason = Reason.UNSUPPORTED_OPERATOR
    last = text.rpartition("RuntimeError: ")[2] if "Traceback of TorchScript" in text else text
    return RuntimeFailure(f"{what}: {clip(last, 400) or type(error).__name__}", reason=reason)


RUNTIME = TorchScript()
