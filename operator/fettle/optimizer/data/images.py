"""Items from a folder of pictures with a sub-folder per class. The label is the sub-folder's position among the sorted names, or its name if
the spec lists the classes. Without sub-folders there are no labels."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice, zip_longest

import numpy as np
from fsspec import AbstractFileSystem

from fettle.api.data import PreprocessSpec
from fettle.api.signature import Signature, Tensor
from fettle.errors import DataError
from fettle.optimizer.data.column import Column
from fettle.optimizer.data.columns import Columns, ReadRequest, listed
from fettle.preprocess.item import item, require_room, size_of, takes_floats
from fettle.preprocess.picture import opened


def read_images(
    filesystem: AbstractFileSystem, folder: str, wanted: ReadRequest, signature: Signature, spec: PreprocessSpec
) -> Columns:
    """The first `wanted.max_samples` pictures, classes in turn, as the model's only input, and their labels. Raises DataError."""
    tensor = _input(signature, wanted.uri)
    size = size_of(tensor, spec, wanted.uri)
    classes = _classes(filesystem, folder, wanted)
    pictures = list(islice(_pictures(filesystem, folder, classes), wanted.max_samples))
    if not pictures:
        raise DataError(f"{wanted.uri} contains no items: expected images, or a sub-folder of images per class")
    column = Column(tensor.name, wanted, len(pictures))
    depths: set[int] = set()
    for path, _ in pictures:
        where = f"{wanted.uri}: {path.removeprefix(folder).lstrip('/')}"
        with filesystem.open(path, "rb") as stream:
            picture = opened(stream, spec.color, wanted.room, where)
        depths.add(picture.white)
        if len(depths) > 1 and not takes_floats(tensor):
            raise DataError(
                f"{where}: 8-bit and 16-bit images are mixed, for an input of type {tensor.dtype}: use one bit depth"
            )
        require_room(picture.image, size, spec.crop, wanted.room, where)
        column.add(item(picture, size, tensor, spec, where)[np.newaxis], where)
    arrays = {tensor.name: column.array()}
    labels = [label for _, label in pictures if label is not None]
    if wanted.label_key is not None and labels:
        names = [path.rsplit("/", 2)[-2] for path, _ in pictures]
        arrays[wanted.label_key] = np.array(names, object) if wanted.by_name else np.array(labels, dtype=np.int64)
    return Columns(arrays, _beside(filesystem, folder, classes) if labels else [])


def _classes(filesystem: AbstractFileSystem, folder: str, wanted: ReadRequest) -> list[str]:
    """The sub-folders in the order of their classes. Raises DataError if the names are numbers that differ from the folders' positions."""
    folders = class_folders(filesystem, folder)
    names = [path.rsplit("/", 1)[-1] for path in folders]
    if folders and wanted.judged and not wanted.by_name and all(map(str.isdecimal, names)):
        numbers = [int(name) for name in names]
        if numbers not in (list(range(len(names))), list(range(1, len(names) + 1))):
            message = (
                f"{wanted.uri}: the folders of the classes are numbered {listed(names)}, expected 0 or 1 and up without a gap: "
                "otherwise a folder's position is the label of another class; list all classes in order in data.evaluation.classes"
            )
            raise DataError(message)
    return folders


def class_folders(filesystem: AbstractFileSystem, folder: str) -> list[str]:
    """The sub-folders in the order of their classes."""
    return _in_order(_folders(filesystem, folder))


def _folders(filesystem: AbstractFileSystem, folder: str) -> list[str]:
    return [path for path in filesystem.ls(folder, detail=False) if filesystem.isdir(path) and not _hidden(path)]


def _pictures(filesystem: AbstractFileSystem, folder: str, classes: list[str]) -> list[tuple[str, int | None]]:
    """(path, label) of every file that is not hidden: the first one of each class, then the second of each, and so on."""
    if not classes:
        return [(path, None) for path in _files(filesystem, folder)]
    by_class = [[(path, label) for path in _files(filesystem, each)] for label, each in enumerate(classes)]
    return [found for found in chain.from_iterable(zip_longest(*by_class)) if found is not None]


def _in_order(paths: Iterable[str]) -> list[str]:
    """Folders of classes sorted by name; if all names are numbers, by number (2 before 10)."""
    ordered = sorted(paths)
    names = [path.rsplit("/", 1)[-1] for path in ordered]
    return sorted(ordered, key=lambda path: int(path.rsplit("/", 1)[-1])) if all(map(str.isdecimal, names)) else ordered


def _beside(filesystem: AbstractFileSystem, folder: str, classes: list[str]) -> list[str]:
    """Names of files beside the class folders, and of folders inside them: their pictures belong to no class."""
    inner = [path for one in classes for path in _folders(filesystem, one)]
    return [path.removeprefix(folder).lstrip("/") for path in (*_files(filesystem, folder), *inner)]


def _files(filesystem: AbstractFileSystem, folder: str) -> list[str]:
    return sorted(path for path in filesystem.ls(folder, detail=False) if filesystem.isfile(path) and not _hidden(path))


def _hidden(path: str) -> bool:
    return path.rsplit("/", 1)[-1].startswith(".")


def _input(signature: Signature, uri: str) -> Tensor:
    if len(signature.inputs) != 1 or len(signature.inputs[0].shape) not in (3, 4):
        shapes = [f"{tensor.name} {list(tensor.shape)}" for tensor in signature.inputs]
        raise DataError(
            f"{uri} is a folder of images, which only fits a model with one image as input; this model has {shapes}: use a file"
        )
    return signature.inputs[0]
