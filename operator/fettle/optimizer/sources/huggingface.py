"""Hugging Face: directories that `save_pretrained` of transformers writes, converted by PyTorch's exporter, judged by transformers in PyTorch.

config.json names the class and the weights fill it. Code of the directory's own runs only where the user trusts it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fettle.api.reasons import Reason
from fettle.api.text import joined, quoted
from fettle.api.vocabulary import FormatName
from fettle.errors import SourceError
from fettle.optimizer.data.columns import Encoder
from fettle.optimizer.sources import sentence, tokenizer
from fettle.optimizer.sources.base import Beside, Inputs
from fettle.optimizer.sources.configuration import read_json
from fettle.optimizer.sources.framework import FrameworkFormat, require_modules
from fettle.optimizer.sources.tokenizer import Tokenizer
from fettle.runtimes.base import numpy_dtype

if TYPE_CHECKING:  # PyTorch is imported where a model is loaded
    from fettle.optimizer.sources.torch_eager import EagerModel

ENTRY = "config.json"
# The weights, and where there are several files of them the table of what lies in which; the first that is there counts.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
BATCH, EXAMPLES = "N", 2  # a size of 1 would be taken for one that is always 1
# Sizes of an example where they vary: convolutions need a least one.
LENGTH = {"input_values": 16000, "input_features": 128, "pixel_values": 224}
SHORT = 16
# Below, what networks halve five times has a size of 1, for which the exporter wants a program of its own.
LEAST = {"height": 33, "width": 33}
MASK = "attention_mask"
MOST_TENSORS = 50_000  # of a module while it is made and filled: the largest that answer in one run have some thousand
POOLER = "pooler."  # a layer behind many models that not all weights come with, and that the model does without


@dataclass(frozen=True)
class Input:
    """An input: its type in V2's terms, and its shape, words in the place of sizes that vary."""

    dtype: str
    shape: tuple[int | str, ...]

    def example(self, name: str) -> Any:
        """A tensor of zeros of this shape."""
        import torch

        from fettle.runtimes.torchscript import to_tensor

        sizes = [
            size if isinstance(size, int) else EXAMPLES if size == BATCH else LENGTH.get(name, SHORT)
            for size in self.shape
        ]
        zeros = to_tensor(np.zeros(sizes, numpy_dtype(self.dtype)))
        return torch.ones_like(zeros) if name == MASK else zeros


TEXT = Input("INT64", (BATCH, "sequence"))


class HuggingFace(FrameworkFormat):
    """A directory with a configuration and weights."""

    name = FormatName.HUGGING_FACE
    title = "Hugging Face directories"
    framework = "transformers"
    modules = ("onnxscript", "torch", "transformers")
    extra = "transformers"

    def recognizes(self, path: Path, head: bytes) -> bool:
        """By its name, and by what it says of the model."""
        if path.suffix == ".safetensors":
            message = (
                f"{path.name} contains only weights: expected {ENTRY} beside it, as save_pretrained writes it, or source.factory with the code "
                "of a PyTorch module"
            )
            raise SourceError(message, reason=Reason.UNSUPPORTED_FORMAT)
        return path.name == ENTRY and {"model_type", "architectures"} & _config(path).keys() != set()

    def require(self, path: Path, trusted: bool) -> None:
        """See `SourceFormat.require`."""
        require_modules(path, self)
        config = _config(path)
        if config.get("auto_map") and not trusted:
            message = (
                f"the model is Python code that lies beside {path.name} ({joined(sorted(_named_code(config)))}), which would run when it is loaded, "
                "so it was not loaded; set source.trusted: true if you have read it"
            )
            raise SourceError(message, reason=Reason.UNSAFE_CODE)
        if quantized := config.get("quantization_config"):
            told = quantized.get("quant_method") if isinstance(quantized, Mapping) else None
            kind = told or "a library of its own"
            message = f"the weights are already quantized, by {kind}: provide the model that they were made from"
            raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)

    def companions(self, path: Path, beside: Beside) -> Sequence[str]:
        """The weights, and the code that the configuration names."""
        names = beside()
        kind = next((name for name in WEIGHTS if name in names), None)
        if kind is None:
            message = f"{path.name} has no weights beside it: expected {joined(WEIGHTS[:3:2], 'or')}"
            raise SourceError(message)
        stem, _, index = kind.partition(".index")
        suffix = Path(stem).suffix
        parts = [name for name in names if name.startswith(f"{Path(stem).stem}-") and name.endswith(suffix)]
        code = (
            [name for name in names if name.endswith(".py") and "/" not in name]
            if _config(path).get("auto_map")
            else []
        )
        tokens = [name for name in tokenizer.FILES if name in names]
        return [kind, *(parts if index else ()), *code, *tokens, *sentence.files(names)]

    def encoder(self, path: Path, inputs: Inputs) -> Encoder | None:
        """The tokenizer that lies beside the model."""
        if tokenizer.TEXTS[0] not in inputs.columns() or not tokenizer.available(path.parent):
            return None
        spec = inputs.by_name.get("input_ids")
        length = spec.shape[-1] if spec is not None and spec.shape else None
        fixed = length if isinstance(length, int) and length > 0 else None
        return Tokenizer(path.parent, fixed, trusted=inputs.trusted)

    def load(self, path: Path, inputs: Inputs) -> EagerModel:
        """See `FrameworkFormat.load`."""
        import torch
        import transformers

        from fettle.optimizer.sources.torch_eager import EagerModel

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        kind = _class(transformers, _config(path), inputs.trusted)
        if issubclass(kind, transformers.PreTrainedModel):
            _refuse_generating(kind)
        head = sentence.Head.of(path.parent)
        options: dict[str, Any] = {
            "local_files_only": True,
            "trust_remote_code": inputs.trusted,
            "output_loading_info": True,
        }
        options |= {"dtype": torch.float32, "attn_implementation": "eager"}
        with _bounded():
            model, told = kind.from_pretrained(path.parent, **options)
            if told["missing_keys"] and all(name.startswith(POOLER) for name in told["missing_keys"]):
                model, told = kind.from_pretrained(path.parent, add_pooling_layer=False, **options)
        _refuse_generating(type(model))  # of what an Auto class has chosen
        lacking = sorted(told["missing_keys"])
        if lacking:
            message = f"the weights lack {len(lacking)} of the tensors that {path.name} describes, such as {lacking[0]}"
            raise SourceError(message, reason=Reason.SOURCE_CORRUPTED)
        model.config.use_cache, model.config.return_dict = False, True  # outputs have names
        whole = model if head is None else head.on(model)
        taken = _inputs(whole, inputs, path.parent)
        shapes = {name: each.shape for name, each in taken.items()}
        examples = {name: each.example(name) for name, each in taken.items()}
        return EagerModel(whole.eval(), shapes, examples, LEAST, vary=False)

    def native(self, path: Path, inputs: Inputs, folder: Path) -> Path | None:
        """See `SourceFormat.native`."""
        return self.load(path, inputs).save(folder)


FORMATS = (HuggingFace(),)


def _config(path: Path) -> dict[str, Any]:
    """What config.json holds. Raises SourceError."""
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def _named_code(config: Mapping[str, Any]) -> set[str]:
    """The classes of the directory's own that a configuration names."""
    named = config.get("auto_map") or {}
    return {str(name) for name in named.values()} if isinstance(named, Mapping) else {str(named)}


def _class(transformers: Any, config: Mapping[str, Any], trusted: bool) -> Any:
    """The class of the model. Raises SourceError."""
    listed = config.get("architectures") or ()
    named = listed if isinstance(listed, str) else next(iter(listed), None)
    if trusted and (own := _own(config, named)) is not None:
        return getattr(transformers, own)
    if named is None and config.get("model_type") in transformers.CONFIG_MAPPING:
        return transformers.AutoModel
    named = named or config.get("model_type")
    found = getattr(transformers, str(named), None)
    if not inspect.isclass(found) or not issubclass(found, transformers.PreTrainedModel):
        saved = f" (saved by transformers {quoted(told, 30)})" if (told := config.get("transformers_version")) else ""
        message = (
            f"transformers {transformers.__version__} has no class {quoted(named, 100)}, which {ENTRY} names{saved}: export the model to ONNX "
            "where it was made"
        )
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    return found


@contextmanager
def _bounded() -> Iterator[None]:
    """While a module is made: a number of layers that nobody meant would be made until memory is full. Raises SourceError (SourceCorrupted)."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    numbers = count(1)

    def refuse_too_many(*_: Any) -> None:
        if next(numbers) > MOST_TENSORS:
            message = f"{ENTRY} describes a model of more than {MOST_TENSORS:,} tensors: it is damaged"
            raise SourceError(message, reason=Reason.SOURCE_CORRUPTED)

    registered = register_module_parameter_registration_hook(refuse_too_many)
    try:
        yield
    finally:
        registered.remove()


def _refuse_generating(kind: Any) -> None:
    if kind.can_generate():
        message = f"{kind.__name__} generates its answer piece by piece, in one run for each; only models that answer in one run are optimized"
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)


def _own(config: Mapping[str, Any], named: Any) -> str | None:
    """The class of transformers that loads the directory's own class `named`, or, where none is called so, the last that loads one."""
    listed = config.get("auto_map")
    ways = (
        {key: str(name) for key, name in listed.items() if key.startswith("AutoModel")}
        if isinstance(listed, Mapping)
        else {}
    )
    return next((key for key, name in ways.items() if name.rpartition(".")[2] == named), next(reversed(ways), None))


# ------------------------------------------------------------------------------------------------------------------- inputs


def _usual(config: Any) -> dict[str, Input]:
    """The inputs that models of transformers take, by name; those of text first."""
    seen = getattr(config, "vision_config", None) or config  # of models of pictures and texts
    read = getattr(config, "text_config", None) or config
    kinds = {"token_type_ids": TEXT} if (getattr(read, "type_vocab_size", None) or 0) > 1 else {}
    channels, bins = getattr(seen, "num_channels", None) or 3, getattr(config, "num_mel_bins", None) or "features"
    return {
        "input_ids": TEXT,
        MASK: TEXT,
        **kinds,
        "pixel_values": Input("FP32", (BATCH, channels, *_picture(getattr(seen, "image_size", None)))),
        "input_values": Input("FP32", (BATCH, "samples")),
        "input_features": Input("FP32", (BATCH, bins, "frames")),
    }


def _picture(size: Any) -> tuple[int | str, int | str]:
    """Height and width, as far as a configuration fixes them: as a number, a pair or a dictionary."""
    sizes: Any = [size.get("height"), size.get("width")] if isinstance(size, Mapping) else size
    sizes = [sizes, sizes] if isinstance(sizes, int) else sizes
    if not isinstance(sizes, Sequence) or len(sizes) != 2 or not all(isinstance(each, int) for each in sizes):
        return "height", "width"
    return sizes[0], sizes[1]


def _inputs(model: Any, given: Inputs, folder: Path) -> dict[str, Input]:
    """What `model` is run with: of the usual inputs those that it takes, and that the items have where they are known; and those of
    `source.inputs`, as they are described there. Raises SourceError (InvalidSpec)."""
    taken = inspect.signature(model.forward).parameters
    unknown = sorted(set(given.by_name) - set(taken))
    if unknown:
        message = f"source.inputs names {joined(unknown)}, which {type(model).__name__} does not take; it takes {joined(list(taken))}"
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    usual = {name: each for name, each in _usual(model.config).items() if name in taken}
    if model.main_input_name not in ("input_ids", "pixel_values") and MASK in usual:
        del usual[MASK]  # of sound: most were trained without
    columns = set(given.columns())
    chosen = {name: each for name, each in usual.items() if name in columns} or usual
    if chosen is usual and tokenizer.TEXTS[0] in columns and tokenizer.available(folder):
        made = Tokenizer(folder, trusted=given.trusted).names
        chosen = {name: each for name, each in usual.items() if name in made}
    if (tokens := given.by_name.get("input_ids")) is not None and tokens.shape is not None:
        chosen = {
            name: Input(each.dtype, tuple(tokens.shape)) if each == TEXT else each for name, each in chosen.items()
        }
    for name, spec in given.by_name.items():
        before = usual.get(name, Input("FP32", ()))
        chosen[name] = Input(spec.dtype or before.dtype, tuple(spec.shape) if spec.shape is not None else before.shape)
    if not chosen:
        message = f"{type(model).__name__} takes {joined(list(taken))}: source.inputs must give dtype and shape of those that your items have"
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    return {name: chosen[name] for name in taken if name in chosen}
