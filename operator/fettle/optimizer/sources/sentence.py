"""Sentence encoders: what sentence-transformers puts behind a model of transformers, as modules.json says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fettle.api.reasons import Reason
from fettle.api.text import joined
from fettle.errors import SourceError
from fettle.optimizer.sources.configuration import read_json

ENTRY = "modules.json"
CONFIG = "config.json"
OUTPUT = "sentence_embedding"
TEXTS = "sentence_*_config.json"  # says what is done to texts before the tokenizer; called after the model's kind
# How sentence-transformers calls the ways in which the vectors of tokens become one, in the file and here.
POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}


@dataclass(frozen=True)
class Head:
    """What follows the model: the vectors of tokens become one by `pooling`, of length 1 if `normalized`."""

    pooling: str
    normalized: bool

    @classmethod
    def of(cls, folder: Path) -> Head | None:
        """What modules.json in `folder` says; None where there is none. Raises SourceError for what is not known."""
        if not (folder / ENTRY).is_file():
            return None
        try:
            parts = [(str(part["type"]).rpartition(".")[2], str(part["path"])) for part in _json(folder / ENTRY)]
        except (KeyError, TypeError) as error:
            raise SourceError(f"{ENTRY} is damaged: {error!r}", reason=Reason.SOURCE_CORRUPTED) from error
        kinds = [kind for kind, _ in parts]
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            message = f"{ENTRY} lists {joined(kinds)}; expected Transformer, Pooling and Normalize: export the model to ONNX where it was made"
            raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
        return cls(_pooling(folder / parts[1][1] / CONFIG), "Normalize" in kinds)

    def on(self, model: Any) -> Any:
        """`model` with this behind it: a module of PyTorch that takes what the model takes, and answers with OUTPUT."""
        from fettle.optimizer.sources.torch_sentence import SentenceEncoder

        return SentenceEncoder(model, self.pooling, self.normalized)


@dataclass(frozen=True)
class Texts:
    """How texts are tokenized: cut off after `length` tokens, those that the tokenizer adds included, and in small letters if `lower`."""

    length: int | None = None
    lower: bool = False

    @classmethod
    def of(cls, folder: Path) -> Texts:
        """What lies beside the model in `folder` says of it. Raises SourceError."""
        if not (folder / ENTRY).is_file() or (path := next(iter(sorted(folder.glob(TEXTS))), None)) is None:
            return cls()
        config = _json(path)
        length = config.get("max_seq_length") if isinstance(config, dict) else config
        if not isinstance(config, dict) or not (length is None or (type(length) is int and length > 0)):
            message = f"{path.name} is damaged: expected an object whose max_seq_length is a positive number of tokens, found {length!r}"
            raise SourceError(message, reason=Reason.SOURCE_CORRUPTED)
        return cls(length, config.get("do_lower_case") is True)


def files(names: Sequence[str]) -> list[str]:
    """Those of `names`, below the folder, that say what is done to texts and what follows the model."""
    return [
        name
        for name in names
        if name == ENTRY or fnmatchcase(name, TEXTS) or name.lower().endswith(f"pooling/{CONFIG}")
    ]


def _pooling(path: Path) -> str:
    config = _json(path)
    if not isinstance(config, dict):
        raise SourceError(
            f"{path.parent.name}/{CONFIG} is damaged: it is not an object", reason=Reason.SOURCE_CORRUPTED
        )
    asked: list[Any] = [pooling for key, pooling in POOLINGS.items() if config.get(key)] or [config.get("pooling_mode")]
    if len(asked) != 1 or asked[0] not in POOLINGS.values():
        others = sorted(key for key, value in config.items() if key.startswith("pooling_mode") and value)
        known = joined(sorted(POOLINGS), "or")
        message = f"{path.parent.name}/{CONFIG} asks for {joined(others) if others else 'no pooling'}; expected one of {known}"
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    return str(asked[0])


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError as error:
        message = f"{ENTRY} names {path.parent.name}, which has no {path.name}"
        raise SourceError(message, reason=Reason.SOURCE_CORRUPTED) from error
