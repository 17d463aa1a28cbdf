"""Items that clients sent, as arrays of an .npz file that `data.evaluation` of an OptimizedModel reads."""

from __future__ import annotations

import zipfile
from collections import defaultdict
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from fettle.runtimes.base import Array
from fettle.store.arrays import item_digest

LONGEST_TEXT = 8192  # characters: in the file, every text takes as much as the longest of its input
MOST_BYTES_KEPT = 1 << 30


@dataclass
class LiveItems:
    """The items so far, each once, by the shapes of their inputs: what has different shapes does not fit into one array.

    `repeated`, `infinite` and `large` ones are not kept: no file of items may hold infinity. NaN it may, where the model handles missing values.
    """

    repeated: int = 0
    infinite: int = 0
    large: int = 0
    most_characters: int = MOST_BYTES_KEPT  # of all texts of an item in the file
    _bytes: int = 0
    _seen: set[str] = field(default_factory=set)
    _by_shape: defaultdict[tuple[Any, ...], list[dict[str, Array]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, inputs: dict[str, Array]) -> None:
        """Keep an item."""
        if any(np.isinf(array.astype(np.float64)).any() for array in inputs.values() if array.dtype.kind in "fV"):
            self.infinite += 1
            return
        texts = [text for array in inputs.values() if array.dtype == object for text in array.reshape(-1).tolist()]
        size = sum(array.nbytes for array in inputs.values()) + sum(map(len, texts))
        longest = max(map(len, texts), default=0)
        padded = longest * len(texts)
        if longest > LONGEST_TEXT or padded > self.most_characters or self._bytes + size > MOST_BYTES_KEPT:
            self.large += 1
            return
        digest = item_digest(inputs)
        if digest in self._seen:
            self.repeated += 1
            return
        self._seen.add(digest)
        self._bytes += size
        self._by_shape[tuple((name, array.shape) for name, array in sorted(inputs.items()))].append(inputs)

    def __len__(self) -> int:
        return max(map(len, self._by_shape.values()), default=0)

    @property
    def misfits(self) -> int:
        """How many have other shapes than most."""
        return sum(map(len, self._by_shape.values())) - len(self)

    def arrays(self, most: int) -> dict[str, Array]:
        """The inputs of the items of the most frequent shape, items on the first axis, as `numpy.savez` can keep them."""
        items = max(self._by_shape.values(), key=len)[:most]
        stacked = {name: np.stack([item[name] for item in items]) for name in items[0]}
        return {name: _savable(array) for name, array in stacked.items()}

    def write(self, stream: IO[bytes], most: int) -> None:
        """Write an .npz file of `arrays`. Texts are compressed, because they are mostly padding; numbers are not worth the time."""
        with zipfile.ZipFile(stream, "w") as archive:
            for name, array in self.arrays(most).items():
                member = zipfile.ZipInfo(f"{name}.npy")
                member.compress_type = zipfile.ZIP_DEFLATED if array.dtype.kind == "U" else zipfile.ZIP_STORED
                with archive.open(member, "w", force_zip64=True) as target:
                    np.lib.format.write_array(target, array, allow_pickle=False)


def _savable(array: Array) -> Array:
    if array.dtype == object:  # texts, which would be pickled
        return array.astype(str)
    return array.astype(np.float32) if array.dtype.kind == "V" else array  # bfloat16, which is no type of numpy's own
