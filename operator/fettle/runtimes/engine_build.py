"""Building TensorRT engines from ONNX files, with either of its libraries, and the note beside an engine with what its file does not say.

Facts that this file rests on (TensorRT RTX 1.7, whose builder needs no GPU; TensorRT 11 has the same API but for `ComputeCapability`):
- A network is strongly typed: the precision of each layer is the one that the ONNX file asks for; there are no flags for it. TF32 is a flag,
  on by default, and taken off: float32 means float32.
- An engine belongs to one release of one library, and to the architectures that it was built for. Nothing in the file says so before it is
  loaded on a GPU.
- Two builds of one model need not have the same bytes: what identifies an engine is what it was built from, never its digest.
- A logger is the only one who says why a build failed; parsing says it by node.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fettle.api.base import ApiModel
from fettle.api.executed import Executed
from fettle.api.reasons import Reason
from fettle.api.signature import Signature, Tensor
from fettle.api.text import quoted
from fettle.api.vocabulary import RuntimeName
from fettle.errors import RuntimeFailure
from fettle.runtimes.base import require_file
from fettle.runtimes.cuda import connect
from fettle.store import kept
from fettle.store.kept import MadeFor

NOTE = "engine.json"
MOST_ERRORS = 32
_COMPUTE = {"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM", "ATTENTION"}
_CLASSES = {"FLOAT": "f32", "HALF": "f16", "BF16": "bf16", "INT8": "int8", "FP8": "f8"}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineOptions:
    """What a build may do.

    `tf32`: round products of float32 to TF32. `sparse`: use kernels for weights that are 2:4 sparse. `timings`: the file of timings of earlier
    builds for such a GPU, which are read and replaced.
    """

    tf32: bool = False
    sparse: bool = False
    timings: Path | None = None


AS_IT_IS = EngineOptions()


@dataclass(frozen=True)
class ShapeRange:
    """The shapes that an input may have: each size is between those of `least` and `most`. The engine is optimized for `usual`."""

    least: tuple[int, ...]
    usual: tuple[int, ...]
    most: tuple[int, ...]


# An optimization profile: the range of each input by name. For each of them, the library chooses kernels that are fast at the usual shapes.
Profile = Mapping[str, ShapeRange]


class EngineNote(ApiModel):
    """What an engine's file does not say: the library and release that built it, the GPU architecture, and the precision of its layers.

    `executed` counts the layers of the network. It is strongly typed, so they run in exactly that precision.
    """

    library: str
    version: str
    architecture: str
    executed: Executed


@dataclass(frozen=True)
class Library:
    """A TensorRT library. `ahead_of_time`: it builds for a given architecture, with or without a GPU. `compiles_on_load`: it compiles kernels for
    the GPU at hand when it loads an engine, and can keep them."""

    name: RuntimeName
    module: Any
    distribution: str
    ahead_of_time: bool
    compiles_on_load: bool = False

    @property
    def version(self) -> str:
        """Its release. Engines of one release do not run in another."""
        return str(self.module.__version__)

    def made_for(self, architecture: str) -> MadeFor:
        """What a GPU of that architecture, and its driver here, let this release find out. Raises RuntimeFailure without a GPU."""
        return MadeFor(
            library=self.distribution, version=self.version, architecture=architecture, driver=connect().driver()
        )

    def architectures(self) -> tuple[str, ...]:
        """The architectures that it can build for; empty if it builds for the local GPU."""
        if not self.ahead_of_time:
            return ()
        names = self.module.ComputeCapability.__members__
        return tuple(name.lower() for name in names if name.startswith("SM"))


def build(
    library: Library,
    entry: Path,
    target: Path,
    architecture: str,
    profiles: Sequence[Profile],
    options: EngineOptions = AS_IT_IS,
) -> EngineNote:
    """Build the ONNX file at `entry` for `architecture`, and write the engine to `target` and its note beside it.

    `profiles`: the ranges of dynamic inputs. Raises RuntimeFailure: UnsupportedOperator with the names of nodes, UnsupportedModel for inputs of
    unknown shape, NodeIncompatible if this library cannot build for that architecture here.
    """
    trt = library.module
    log = error_log(trt)
    _require_target(library, architecture)
    with reported(library, log):
        builder = trt.Builder(log)
        network = _parsed(library, builder, entry, log)
        executed = precisions(network)
        config = builder.create_builder_config()
        _allow(trt, config, options)
        if library.ahead_of_time:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, architecture.upper()), 0)
        for profile in _profiles(builder, network, profiles):
            config.add_optimization_profile(profile)
        timings = _Timings(library, config, options.timings, architecture) if options.timings is not None else None
        content = builder.build_serialized_network(network, config)
        if content is None:
            raise RuntimeFailure(said(library, "built no engine", log.errors), reason=Reason.UNSUPPORTED_MODEL)
        if timings is not None:
            timings.keep()
    target.write_bytes(content)
    note = EngineNote(
        library=library.distribution, version=library.version, architecture=architecture, executed=executed
    )
    target.with_name(NOTE).write_bytes(note.canonical())
    return note


def error_log(trt: Any) -> Any:
    """A logger that keeps the first errors, of which the others are consequences. Not all of them: a loaded engine has the logger for good, and each
    request of a wrong shape is an error to the library."""

    class Log(trt.ILogger):  # type: ignore[misc]  # its base is known at run time only
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                if len(self.errors) < MOST_ERRORS:
                    self.errors.append(message)
                log.debug("%s", message)

    return Log()


@contextlib.contextmanager
def reported(library: Library, log: Any) -> Iterator[None]:
    """Convert the library's exceptions (pybind11 raises TypeError, RuntimeError and others) to ours.

    No garbage is collected meanwhile: the library calls the logger with a lock held that the destructors of its objects wait for, and the
    traceback of an earlier build that failed may still hold some.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    except (RuntimeFailure, MemoryError, OSError):
        raise
    except Exception as error:
        raise RuntimeFailure(said(library, f"failed: {error}", log.errors)) from error
    finally:
        if collecting:
            gc.enable()


def said(library: Library, what: str, errors: Iterable[str]) -> str:
    details = "; ".join(dict.fromkeys(" ".join(error.split()) for error in errors))
    return f"{library.name} {what}: {quoted(details or 'it gave no reason', 400)}"


def _parsed(library: Library, builder: Any, entry: Path, log: Any) -> Any:
    trt = library.module
    require_file(entry)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(entry)):
        return network
    refused = [parser.get_error(index) for index in range(parser.num_errors)]
    nodes = dict.fromkeys(
        f"{error.node_operator()} {error.node_name() or '(without a name)'}: {' '.join(error.desc().split())}"
        for error in refused
    )
    text = "; ".join(nodes) or "; ".join(log.errors)
    message = f"{library.name} cannot build this model: {quoted(text, 400)}"
    raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_OPERATOR)


def _require_target(library: Library, architecture: str) -> None:
    """Raises RuntimeFailure (NodeIncompatible) for a GPU that no engine can be built for here. Asked first: a builder itself takes a GPU to make."""
    if not library.ahead_of_time:
        here = connect().architecture()
        if here != architecture:
            message = (
                f"{library.name} builds only for the GPU of this node, which is {here}; the target's is {architecture}"
            )
            raise RuntimeFailure(message, reason=Reason.NODE_INCOMPATIBLE)
        return
    known = library.architectures()
    if architecture not in known:
        message = f"{library.name} {library.version} builds for {', '.join(known)}, not for {architecture}"
        raise RuntimeFailure(message, reason=Reason.NODE_INCOMPATIBLE)


def _allow(trt: Any, config: Any, options: EngineOptions) -> None:
    for allowed, flag in ((options.tf32, trt.BuilderFlag.TF32), (options.sparse, trt.BuilderFlag.SPARSE_WEIGHTS)):
        (config.set_flag if allowed else config.clear_flag)(flag)


class _Timings:
    """What the library times while it builds, kept in a file for the next build on such a GPU. The library itself refuses those of another one."""

    def __init__(self, library: Library, config: Any, path: Path, architecture: str) -> None:
        self._config, self._path, self._made_for = config, path, library.made_for(architecture)
        cache = config.create_timing_cache(kept.read(path, self._made_for))
        if cache is None or not config.set_timing_cache(cache, False):
            log.info("%s takes no timings from %s, and times anew", library.name, path)
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def keep(self) -> None:
        """Keep what is known now."""
        cache = self._config.get_timing_cache()
        if cache is not None:
            kept.write(self._path, self._made_for, bytes(cache.serialize()))


def _profiles(builder: Any, network: Any, profiles: Sequence[Profile]) -> list[Any]:
    """The library's optimization profiles; none if every input has a single shape.

    A size that never varies is set in the network: dimensions of one name are one to the library, and their sizes may differ all the same.
    """
    varying: dict[str, list[ShapeRange]] = {}
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        ranges = [profile[tensor.name] for profile in profiles if tensor.name in profile]
        if len(ranges) < max(len(profiles), 1) or any(len(each.most) != len(shape) for each in ranges):
            message = f"the input {tensor.name!r} has the shape {list(shape)}: an engine needs the range of each dynamic dimension"
            raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_MODEL)
        ends = [sizes for each in ranges for sizes in (each.least, each.most)]
        fixed = tuple(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*ends, strict=True))
        tensor.shape = fixed
        if -1 in fixed:
            varying[tensor.name] = ranges
    made = [builder.create_optimization_profile() for _ in profiles] if varying else []
    for name, ranges in varying.items():
        for profile, each in zip(made, ranges, strict=True):
            profile.set_shape(name, each.least, each.usual, each.most)
    return made


def precisions(network: Any) -> Executed:
    """The number of compute layers by precision: a product of dequantized values runs in what they were quantized to."""
    makers = {}
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    for layer in layers:
        for index in range(layer.num_outputs):
            output = layer.get_output(index)
            if output is not None:
                makers[output.name] = layer
    classes = [_precision(layer, makers) for layer in layers if layer.type.name in _COMPUTE]
    return Executed(**Counter(classes), total=len(classes))


def _precision(layer: Any, makers: Mapping[str, Any]) -> str:
    first = layer.get_input(0)
    maker = makers.get(first.name)
    if maker is not None and maker.type.name == "DEQUANTIZE":
        return _CLASSES.get(maker.get_input(0).dtype.name, "int8")
    return _CLASSES.get(first.dtype.name, "f32")


def profiles_of(signature: Signature, batch_size: int | None, batch_sizes: Sequence[int]) -> tuple[Profile, ...]:
    """The optimization profiles of an engine: for batches of `batch_size` where it is set, else one for each of `batch_sizes`, which takes those
    that are too large for the size before it, and is optimized for its own. A model without a batch axis has one.

    Raises RuntimeFailure (UnsupportedModel) for a size that varies beside the batch: nothing says between what.
    """
    if batch_size or all(tensor.batch_axis is None for tensor in signature.inputs):
        return (_profile(signature, batch_size or 1, batch_size or 1),)
    ends = sorted(set(batch_sizes))
    return tuple(_profile(signature, before + 1, end) for before, end in zip((0, *ends), ends, strict=False))


def _profile(signature: Signature, least: int, most: int) -> Profile:
    sizes = (least, most, most)
    return {tensor.name: ShapeRange(*(_shape(tensor, size) for size in sizes)) for tensor in signature.inputs}


def _shape(tensor: Tensor, batch: int) -> tuple[int, ...]:
    shape = tuple(batch if axis == tensor.batch_axis else size for axis, size in enumerate(tensor.shape))
    if -1 in shape:
        message = (
            f"the input {tensor.name!r} has the shape {list(tensor.shape)}, and the range of its dynamic "
            "dimensions is unknown: set them in source.inputs"
        )
        raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_MODEL)
    return shape


def read_note(entry: Path) -> EngineNote:
    """The note beside an engine. Raises RuntimeFailure where it is missing or cannot be read."""
    path = entry.with_name(NOTE)
    try:
        return EngineNote.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RuntimeFailure(f"{path} cannot be read: {error}") from error
