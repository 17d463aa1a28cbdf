"""The tokenizer of a Hugging Face directory: texts become the inputs that its model takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fettle.api.reasons import Reason
from fettle.api.text import joined, quoted
from fettle.errors import DataError, SourceError
from fettle.optimizer.data.columns import Portable
from fettle.optimizer.sources.configuration import read_json
from fettle.optimizer.sources.sentence import Texts
from fettle.preprocess.text import COLUMNS, TextEncoder
from fettle.runtimes.base import Array

TEXTS = COLUMNS
# Any of them, as far as there are.
FILES = (
    *("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
    *("vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
    *("spm.model", "sentencepiece.model", "spm_char.model", "bpe.codes", "dict.txt"),
    "prophetnet.tokenizer",
)
UNBOUNDED = 1_000_000  # a length that says that none was written down
RESERVED = 2  # positions that some models count from
METHODS = ("__call__", "_encode_plus", "pad")  # with which a class may do more to texts than its file says


class Tokenizer:
    """The tokenizer in `folder`. Texts get as long as the longest of them, or `length` tokens where it is given; what is longer than that, or
    than the model has positions for, is cut off. Code of the folder's own runs if it is `trusted`; nobody is asked."""

    def __init__(self, folder: Path, length: int | None = None, *, trusted: bool = False) -> None:
        from transformers import AutoTokenizer

        with _usable("loaded"):
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
            self._names = tuple(map(str, self._tokenizer.model_input_names))
            longest = int(self._tokenizer.model_max_length)
        if longest < 1:
            message = f"the tokenizer beside the model is damaged: its model_max_length is {longest}"
            raise SourceError(message, reason=Reason.SOURCE_CORRUPTED)
        self._length = length
        asked = Texts.of(folder)
        self._lower = asked.lower
        self._most = length or min(longest, _positions(folder), asked.length or UNBOUNDED)

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Encoder.columns`."""
        return TEXTS

    @property
    def names(self) -> tuple[str, ...]:
        """Of the inputs that it makes."""
        return self._names

    def encode(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """See `Encoder.encode`."""
        deep = [name for name in columns if columns[name].ndim != 1]
        if deep:
            raise DataError(f"expected one text for each item in {joined(deep)}, found arrays of them")
        texts, pairs = (self._texts(columns[name]) if name in columns else None for name in TEXTS)
        if self._tokenizer.pad_token is None:
            raise DataError(
                "the tokenizer beside the model has no token for padding: provide input_ids instead of texts"
            )
        with _usable("used on these texts"):
            made = self._tokenizer(
                texts,
                pairs,
                padding="longest" if self._length is None else "max_length",
                truncation=True,
                max_length=self._most if self._most < UNBOUNDED else None,
                return_tensors="np",
            )
            return {name: np.asarray(made[name], np.int64) for name in self.names if name in made}

    def portable(self, columns: Mapping[str, Array]) -> Portable:
        """See `Encoder.portable`."""
        made = self.encode(columns)  # which leaves in the file how it cut off and padded
        content = self._file()
        texts = (columns[name].tolist() for name in TEXTS if name in columns)
        again = TextEncoder(content, lower=self._lower).encode(*texts)
        if any(name not in again or not np.array_equal(array, again[name]) for name, array in made.items()):
            raise DataError(
                "transformers tokenizes these texts differently from the tokenizer in its own file (tokenizer.json)"
            )
        return Portable(content, self._lower)

    def _file(self) -> bytes:
        from transformers import PreTrainedTokenizerFast

        kind = type(self._tokenizer)
        if not issubclass(kind, PreTrainedTokenizerFast):
            raise DataError(
                f"{kind.__name__} is a tokenizer in Python, which cannot be stored as a file of the library tokenizers"
            )
        changed = [name for name in METHODS if getattr(kind, name) is not getattr(PreTrainedTokenizerFast, name)]
        if changed or self._tokenizer.backend_tokenizer.encode_special_tokens:
            raise DataError(f"{kind.__name__} does more to texts than a file of the library tokenizers can describe")
        return str(self._tokenizer.backend_tokenizer.to_str()).encode()

    def _texts(self, column: Array) -> list[str]:
        texts: list[str] = column.tolist()
        return [text.lower() for text in texts] if self._lower else texts


@contextmanager
def _usable(what: str) -> Iterator[None]:
    """While the library does something with a tokenizer that may be damaged. Raises SourceError (SourceCorrupted)."""
    try:
        yield
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        message = f"the tokenizer beside the model cannot be {what}: {quoted(error)}"
        raise SourceError(message, reason=Reason.SOURCE_CORRUPTED) from error


def available(folder: Path) -> bool:
    """Whether there is a tokenizer in `folder`."""
    return any((folder / name).is_file() for name in FILES)


def _positions(folder: Path) -> int:
    """How many tokens the model has positions for, as far as its configuration says."""
    config = read_json(folder / "config.json")
    read = config.get("text_config")  # of models of pictures and texts
    positions = (read if isinstance(read, dict) else config).get("max_position_embeddings")
    return positions - RESERVED if isinstance(positions, int) and positions > RESERVED else UNBOUNDED
