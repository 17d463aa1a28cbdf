"""Memory follows what the items hold, not how wide the widest of them is or how small a file they were packed into."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fettle.optimizer.data.columns import Room

MOST = 200 << 20  # bytes above what the imports take; none of the files holds more than a few megabytes of items
TEXTS = ["good bad fine"] * 5999 + ["x" * 60_000]

# Everything that preparing and measuring do with items: read, told apart, stored, laid out, fed.
SCRIPT = """
import pathlib, resource, sys, tempfile
import pyarrow.parquet
from fettle.api.signature import Signature, Tensor
from fettle.optimizer.data import items as data
from fettle.optimizer.data.columns import Room
from fettle.optimizer.data.split import split
from fettle.optimizer.measure import items as stored
from fettle.store.store import Store
from fettle.store.uris import Mounts

folder, name, dtype, shape, most = sys.argv[1:]
shape = tuple(map(int, shape.split(",")))
tensor = Tensor(name="x", dtype=dtype, shape=shape, batch_axis=0)
signature = Signature(inputs=(tensor,), outputs=())
mounts = Mounts({"claim": pathlib.Path(folder)})
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
found = data.read(data.ItemsRequest(f"pvc://claim/{name}", int(most) or None), mounts, signature, {"x": 0}, Room())
parts = split(None, found)
store = Store.open("pvc://claim/store", mounts)
put = store.put_data((parts.evaluation or found).stored(signature))
with tempfile.TemporaryDirectory() as temporary:
    items = stored.opened(stored.unpack(store, put, pathlib.Path(temporary) / "items"), signature)
    for batch in items.batches(stored.batch_size(items, None, False)):
        items.feed(batch)
print(len(found), peak() - before)
"""


def texts_parquet(path: Path) -> None:
    pq.write_table(pa.table({"x": TEXTS}), path)


def texts_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps({"x": text}) + "\n" for text in TEXTS))


def texts_npz(path: Path) -> None:
    np.savez_compressed(path, x=np.array(TEXTS[-1000:]))  # 240 MB in one width


def zeros_npz(path: Path) -> None:
    np.savez_compressed(path, x=np.zeros((4000, 50_000), np.int8))  # 200 kB for 200 MB


def zeros_parquet(path: Path) -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(100_000_000, np.int8)), 50_000)
    pq.write_table(pa.table({"x": column}), path, row_group_size=500)


CASES = [
    ("texts.parquet", texts_parquet, "BYTES", "-1", 0, 6000),
    ("texts.jsonl", texts_jsonl, "BYTES", "-1", 0, 6000),
    ("texts.npz", texts_npz, "BYTES", "-1", 0, 1000),
    ("zeros.npz", zeros_npz, "INT8", "-1,50000", 20, 20),
    ("zeros.parquet", zeros_parquet, "INT8", "-1,50000", 20, 20),
]


@pytest.mark.parametrize(("name", "write", "dtype", "shape", "most", "items"), CASES, ids=[case[0] for case in CASES])
def test_memory_follows_what_the_items_hold(
    tmp_path: Path, name: str, write: object, dtype: str, shape: str, most: int, items: int
) -> None:
    write(tmp_path / name)  # type: ignore[operator]
    assert (tmp_path / name).stat().st_size < 4 << 20
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), name, dtype, shape, str(most)],
        capture_output=True,
        text=True,
        check=True,
    )
    count, used = map(int, done.stdout.split())
    assert count == items
    assert used < MOST, f"{used >> 20} MiB for {(tmp_path / name).stat().st_size} bytes"


def test_the_room_for_items_is_a_quarter_of_what_this_process_may_use() -> None:
    import psutil

    assert 0 < Room().size <= psutil.virtual_memory().total // 4


def test_a_picture_that_unpacks_to_far_more_than_its_file_is_not_opened() -> None:
    from fettle.api.vocabulary import Color
    from fettle.errors import DataError
    from fettle.preprocess.picture import opened

    stream = io.BytesIO()
    Image.new("L", (9000, 9000)).save(stream, "PNG", compress_level=9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stream.seek(0)
    with pytest.raises(DataError, match="9000 x 9000 pixels: the items need more than"):
        opened(stream, Color.RGB, Room(512 << 20), "here")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_a_strip_that_scaling_would_make_huge_is_not_scaled(tmp_path: Path) -> None:
    from fsspec.implementations.local import LocalFileSystem

    from fettle.api.data import PreprocessSpec
    from fettle.api.signature import Signature, Tensor
    from fettle.errors import DataError
    from fettle.optimizer.data.columns import ReadRequest
    from fettle.optimizer.data.images import read_images

    Image.new("RGB", (1, 9000)).save(tmp_path / "strip.png")
    image = Tensor(name="image", dtype="FP32", shape=(-1, 3, 224, 224), batch_axis=0)
    asked = ReadRequest("here", {"image": "FP32"}, None, None, Room(512 << 20))
    spec = PreprocessSpec(crop=0.875)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"strip\.png, scaled to 256 x 2304000 pixels: the items need more than"):
        read_images(LocalFileSystem(), str(tmp_path), asked, Signature(inputs=(image,), outputs=(image,)), spec)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
