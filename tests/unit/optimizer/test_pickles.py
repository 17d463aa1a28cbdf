"""What is read off a pickle without executing it."""

from __future__ import annotations

import argparse
import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fettle.optimizer.sources import pickles

FORM = {
    "mean_": np.float64(0.5),
    "scale_": np.arange(3.0),
    "args": argparse.Namespace(numbers=[1, 2.5, None], mean_=np.ones((2, 2))),
    "counts": collections.OrderedDict(scale_=np.float32(1)),
}


def needed(value: Any, protocol: int) -> set[str]:
    """What the unpickler really asks for."""
    import io

    asked: set[str] = set()

    class Listing(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            asked.add(f"{module}.{name}")
            return super().find_class(module, name)

    Listing(io.BytesIO(pickle.dumps(value, protocol))).load()
    return asked


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_exactly_what_the_unpickler_would_import_is_named(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(FORM, protocol))
    named = {name.replace("__builtin__.", "builtins.") for name in pickles.imported(path)}
    assert named == {name.replace("__builtin__.", "builtins.") for name in needed(FORM, protocol)}
    assert "argparse.Namespace" in named


def test_a_damaged_pickle_names_what_comes_before_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    for damaged in (b"\x80\x04\x93.", b"\x80\x04h\x07.", b"\x80\x040.", b"\x80\x04t."):
        path.write_bytes(b"\x80\x02c__main__\nThing\n" + damaged)
        assert pickles.imported(path) == ["__main__.Thing"]
