"""Damaged files of Keras and TensorFlow: each ends with a reason that is the file's, none with an error of ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from tests.toolchains.damaged import ZIP, Change, changes
from tests.toolchains.preparing import Kind, Preparer, Whole, preparer
from tests.toolchains.tensorflow import examples
from tests.toolchains.tensorflow.test_frozen_graph import network, put

TFLITE = b"\x1c\x00\x00\x00TFL3"
GRAPH = b"\n\x20\n\x05image\x12\x0bPlaceholder"


def _file(name: str, folder: Path, header: bytes) -> Whole:
    return Whole({name: (folder / name).read_bytes()}, name, header)


def keras(folder: Path) -> Whole:
    return _file(examples.save_keras(examples.convolutional(), folder), folder, ZIP)


def tflite(folder: Path) -> Whole:
    return _file(examples.save_tflite(examples.convolutional(), folder), folder, TFLITE)


def frozen_graph(folder: Path) -> Whole:
    put(network, folder)
    return _file("graph.pb", folder, GRAPH)


KINDS = (keras, tflite, frozen_graph)


@pytest.fixture(scope="module")
def preparing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preparer]:
    with preparer(tmp_path_factory.mktemp("preparing")) as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_not_whole_is_refused_with_a_reason(preparing: Preparer, kind: Kind) -> None:
    preparing.refuses_forms(kind)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, derandomize=True)
@given(made=changes())
def test_a_changed_file_is_prepared_or_refused_with_a_reason(
    preparing: Preparer, kind: Kind, made: list[Change]
) -> None:
    preparing.refuses_changed(kind, made)
