"""Weights without their module: read without running anything, and put into the module that they belong to."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from fettle.api.reasons import Reason
from fettle.api.text import joined, quoted
from fettle.errors import SourceError
from fettle.optimizer.sources.torch_pickle import cause

# What wrappers put in front of every name: DataParallel, torch.compile, a Lightning module around the model.
PREFIXES = ("module.", "_orig_mod.", "model.")
HALF = (torch.float16, torch.bfloat16)
_MOST_NAMED = 4
State = MutableMapping[str, Any]
log = logging.getLogger(__name__)


def read(path: Path, key: str | None) -> State:
    """The state dict in the file, under `key` of a checkpoint where one is given. Raises SourceError."""
    content = _content(path)
    if _is_state(content):
        if key is None:
            return content
        message = f"{path.name} is a state dict itself, not a checkpoint with {key!r}: remove source.factory.key"
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    keys = [str(name) for name in content] if isinstance(content, Mapping) else []
    states = [name for name in keys if _is_state(content.get(name))]
    if key is not None and key not in states:
        there = _listed("its state dicts are", states) if states else _listed("its keys are", keys)
        message = f"{path.name} has no state dict {key!r} (source.factory.key); {there}"
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    if key is None and len(states) > 1:
        message = (
            f"{path.name} contains several state dicts: set source.factory.key to {joined(states[:_MOST_NAMED], 'or')}"
        )
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    if not states:
        what = _listed("a dictionary with the keys", keys) if keys else f"a {type(content).__name__}"
        message = f"{path.name} contains no state dict, which maps names to tensors; found {what}; save torch.save(model.state_dict(), 'weights.pt')"
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    state: State = content[key or states[0]]
    return state


def _content(path: Path) -> Any:
    """What the file holds, read by what runs nothing. Raises SourceError (SourceCorrupted)."""
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the libraries raise what they like for a damaged file
        raise SourceError(f"{path.name} is damaged: {cause(error)}", reason=Reason.SOURCE_CORRUPTED) from error


def _is_state(found: Any) -> TypeGuard[State]:
    """Whether that is a state dict: names with tensors, and perhaps what a module keeps beside them."""
    if not isinstance(found, Mapping) or not found or not all(isinstance(name, str) for name in found):
        return False
    others = [name for name, value in found.items() if not isinstance(value, torch.Tensor)]
    return all(name.endswith("_extra_state") for name in others) and len(others) < len(found)


def filled(module: Any, state: State, name: str) -> Any:
    """`module` with the weights of the file `name`, in evaluation mode; in half precision no longer.

    Raises SourceError (UnsupportedModel) naming what is missing, left over, or of another shape.
    """
    _drop_prefixes(state, module.state_dict().keys())
    try:
        told = module.load_state_dict(state, strict=False)
    except Exception as error:  # RuntimeError for shapes, but hooks of a module's own raise what they like
        faults = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = "; ".join(faults[1:_MOST_NAMED] or faults) or type(error).__name__
        message = f"the weights in {name} do not fit the module {type(module).__name__}: {quoted(text)}"
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL) from error
    missing, unexpected = _not_tied(module, told.missing_keys), told.unexpected_keys
    if missing or unexpected:
        parts = [_listed("it lacks", missing)] if missing else []
        parts += [_listed("the module does not know", unexpected)] if unexpected else []
        message = f"the weights in {name} are not those of the module {type(module).__name__}: {'; '.join(parts)}"
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    if any(tensor.dtype in HALF for tensor in (*module.parameters(), *module.buffers())):
        log.info("the module is in half precision, and is computed in float32")
        module.float()
    return module.eval().requires_grad_(False)


def _drop_prefixes(state: State, known: Iterable[str]) -> None:
    """Names as the module has them, without what wrappers put in front of each."""
    own = list(known)
    for prefix in (*PREFIXES, *PREFIXES):  # wrappers of wrappers, in any order
        if all(name.startswith(prefix) for name in state) and not any(name.startswith(prefix) for name in own):
            consume_prefix_in_state_dict_if_present(state, prefix)


def _not_tied(module: Any, missing: Iterable[str]) -> list[str]:
    """Of the names that were not given, those that no given tensor stands for: files of safetensors have tied weights once."""
    places = {
        name: (tensor.data_ptr(), tensor.shape)
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, torch.Tensor) and tensor.numel()
    }
    absent = list(missing)
    given = {place for name, place in places.items() if name not in absent}
    return [name for name in absent if places.get(name) not in given]


def _listed(what: str, names: list[str]) -> str:
    """'it lacks a.weight, a.bias and 3 more'."""
    named = (names or ["none"])[:_MOST_NAMED] + (
        [f"{len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
    )
    return f"{what} {joined(named)}"
