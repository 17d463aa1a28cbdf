"""Damaged files of Keras and TensorFlow: each ends with a reason that is the file's, none with an error of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from tests.toolchains.damaged import ZIP, Change, changes
from tests.toolchains.preparing import Kind, Preparer, Whole, files_below
from tests.toolchains.tensorflow import examples
from tests.toolchains.tensorflow.test_frozen_graph import network, put

TFLITE = b"\x1c\x00\x00\x00TFL3"
GRAPH = b"\n\x20\n\x05image\x12\x0bPlaceholder"
HDF5 = b"\x89HDF\r\n\x1a\n"
SAVED = b"\x08\x01\x12\xff\xff\xff\xff\x07"
TABLE = b"\x00\x00\x7f"  # of variables: where each lies in the file beside it


def _file(name: str, folder: Path, header: bytes) -> Whole:
    return Whole({name: (folder / name).read_bytes()}, name, header)


def keras(folder: Path) -> Whole:
    return _file(examples.save_keras(examples.convolutional(), folder), folder, ZIP)


def h5(folder: Path) -> Whole:
    return _file(examples.save_h5(examples.convolutional(), folder), folder, HDF5)


def _saved_model(folder: Path, target: str, header: bytes) -> Whole:
    examples.save_saved_model(examples.convolutional(), folder)
    return Whole(files_below(folder), f"saved/{target}", header, entry="saved")


def graph_of_a_saved_model(folder: Path) -> Whole:
    return _saved_model(folder, "saved_model.pb", SAVED)


def table_of_variables(folder: Path) -> Whole:
    return _saved_model(folder, "variables/variables.index", TABLE)


def variables(folder: Path) -> Whole:
    return _saved_model(folder, "variables/variables.data-00000-of-00001", b"\x00")


def tflite(folder: Path) -> Whole:
    return _file(examples.save_tflite(examples.convolutional(), folder), folder, TFLITE)


def frozen_graph(folder: Path) -> Whole:
    put(network, folder)
    return _file("graph.pb", folder, GRAPH)


KINDS = (keras, h5, graph_of_a_saved_model, table_of_variables, variables, tflite, frozen_graph)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_not_whole_is_refused_with_a_reason(preparing: Preparer, kind: Kind) -> None:
    preparing.refuses_forms(kind)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, derandomize=True)
@given(made=changes())
def test_a_changed_file_is_prepared_or_refused_with_a_reason(
    preparing: Preparer, kind: Kind, made: list[Change]
) -> None:
    preparing.refuses_changed(kind, made)
