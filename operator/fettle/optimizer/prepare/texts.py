"""What a server makes inputs of texts with: the tokenizer of the source, if the evaluation items were texts and it makes the same of them there."""

from __future__ import annotations

from fettle.api.signature import Signature
from fettle.api.task import StoredTokenizer
from fettle.errors import DataError
from fettle.optimizer.data.columns import Encoder
from fettle.optimizer.data.items import Items
from fettle.preprocess.text import IDS, MASK
from fettle.store.manifest import put_tokenizer
from fettle.store.store import Store


def stored_tokenizer(
    store: Store, encoder: Encoder | None, items: Items, signature: Signature
) -> tuple[StoredTokenizer | None, tuple[str, ...]]:
    """The tokenizer, and a note if a server cannot use it. Raises StoreError."""
    if encoder is None or not items.read:
        return None, ()
    try:
        _require_mask(signature)
        found = encoder.portable(items.read)
    except DataError as error:
        return None, (f"the served model takes tokens and no texts: {error.message}",)
    return put_tokenizer(store, found.content, lower=found.lower), ()


def _require_mask(signature: Signature) -> None:
    """Raises DataError if the answer to a text depends on how long the others are that are padded together with it."""
    inputs = {tensor.name: tensor for tensor in signature.inputs}
    if MASK in inputs:
        return
    varies = any(size < 0 for axis, size in enumerate(inputs[IDS].shape) if axis != inputs[IDS].batch_axis)
    if varies:
        raise DataError(
            f"without {MASK}, the answer to a text depends on how far it is padded; fix the length in source.inputs"
        )
