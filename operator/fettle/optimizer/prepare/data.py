"""The items of a run: read and split, or generated if there are none; the errors and notes about them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fettle.api import metrics
from fettle.api.data import DataSpec, EvaluationSpec, GeneratedSpec, TrainingSpec
from fettle.api.signature import Signature
from fettle.api.source import InputSpec
from fettle.api.vocabulary import Metric
from fettle.errors import DataError, RuntimeFailure, SourceError
from fettle.optimizer.data import generate
from fettle.optimizer.data import items as data
from fettle.optimizer.data.columns import LABELS, Encoder, Room, listed
from fettle.optimizer.data.items import Items, ItemsRequest
from fettle.optimizer.data.split import SPLIT_MOST, Split, split, with_training
from fettle.optimizer.onnx.inputs import Hint
from fettle.optimizer.prepare.batch import PROOF_ITEMS, PROOF_MOST, stacking_axes
from fettle.optimizer.prepare.code import read_function
from fettle.optimizer.reference import SLOW_SECONDS
from fettle.optimizer.sources.base import RunModel, RunnableModel, failure_of
from fettle.store.uris import Mounts

LARGE_BYTES = 4 << 20  # an item of this size is not made by the dozen


@dataclass(frozen=True)
class Data:
    """The items of a run. Forms of the model are compared on `probes`."""

    probes: Items
    split: Split
    generator: generate.Generator
    axes: Mapping[str, int]


def read(
    spec: DataSpec,
    mounts: Mounts,
    signature: Signature,
    axes: Mapping[str, int],
    hints: Mapping[str, Hint],
    encoder: Encoder | None,
) -> Split:
    """Read the items at the spec's addresses, and split them. Raises DataError."""
    missing = frozenset(name for name, hint in hints.items() if hint.missing)
    calibration = evaluation = None
    room = Room()
    by_name = spec.evaluation is not None and bool(spec.evaluation.classes)
    judged = spec.evaluation is not None and spec.evaluation.metric != Metric.AGREEMENT
    if spec.calibration is not None:
        given = spec.calibration
        label_key = spec.evaluation.label_key if spec.evaluation is not None else None
        asked = ItemsRequest(
            given.uri, given.max_samples, label_key, given.preprocess, by_name, judged, missing, encoder
        )
        calibration = data.read(asked, mounts, signature, axes, room)
    if spec.evaluation is not None:
        judging = spec.evaluation
        if judging.label_key in {tensor.name for tensor in signature.inputs}:
            raise DataError(f"data.evaluation.labelKey {judging.label_key!r} is an input of the model")
        asked = ItemsRequest(
            judging.uri, judging.max_samples, judging.label_key, judging.preprocess, by_name, judged, missing, encoder
        )
        evaluation = data.read(asked, mounts, signature, axes, room)
        if evaluation.labels is None:
            _refuse_without_labels(judging, evaluation.others)
    parted = split(calibration, evaluation)
    if spec.training is None:
        return parted
    learned = spec.training
    asked = ItemsRequest(
        learned.uri,
        learned.max_samples,
        learned.label_key,
        learned.preprocess,
        by_name,
        missing=missing,
        encoder=encoder,
    )
    training = data.read(asked, mounts, signature, axes, room)
    _require_labels(spec, learned, training, mounts)
    return with_training(parted, training)


def _require_labels(spec: DataSpec, asked: TrainingSpec, items: Items, mounts: Mounts) -> None:
    """Raises DataError if `labelKey` names none of the columns, or if folders of images are of other classes than those of data.evaluation.

    A file of inputs alone has no labels, whatever they are called elsewhere.
    """
    if items.labels is None and asked.label_key != LABELS:
        others = data.column_names_of(asked.uri, mounts) - items.arrays.keys() - items.read.keys()
        if others:
            missing = f"{asked.uri}: no array {asked.label_key!r} (data.training.labelKey), found {listed(others)}"
            raise DataError(f"{missing}: set labelKey to the one that holds the labels, or remove it to train without")
    if items.labels is None or spec.evaluation is None or spec.evaluation.classes:
        return
    own, theirs = (data.class_names_of(uri, mounts) for uri in (asked.uri, spec.evaluation.uri))
    if own and theirs and own != theirs:
        raise DataError(
            f"{asked.uri} has {len(own)} folders of classes, {spec.evaluation.uri} has {len(theirs)}, and only one of them has "
            f"{listed(set(own) ^ set(theirs))}: a folder's position is its label, so provide the same folders in both, or list all classes in "
            "data.evaluation.classes"
        )


def column_names(spec: DataSpec, mounts: Mounts) -> set[str]:
    """Names of the columns of the given items, without labels. Raises DataError."""
    given = [one.uri for one in (spec.calibration, spec.evaluation, spec.training) if one is not None]
    labels = {one.label_key for one in (spec.evaluation, spec.training) if one is not None}
    return {name for uri in given for name in data.column_names_of(uri, mounts)} - labels


def custom_code(spec: DataSpec, mounts: Mounts) -> str | None:
    """The Python code of a custom metric; None if there is none. Raises DataError."""
    uri = spec.evaluation.custom.uri if spec.evaluation is not None and spec.evaluation.custom is not None else None
    return None if uri is None else read_function(uri, "data.evaluation.custom.uri", mounts)


def _refuse_without_labels(asked: EvaluationSpec, others: Sequence[str]) -> None:
    """Raises DataError if labels are missing that the metric or `labelKey` requires, or that may be in `others`, the unused columns.

    Accuracy, the default, works without labels: it drops by no more than the agreement with the original does. A task's metric also does:
    it takes the original's answers as the truth. Agreement puts no bound on the drop of other metrics (F1 of a rare class drops much further).
    """
    missing = f"{asked.uri}: no array {asked.label_key!r} (data.evaluation.labelKey)"
    found = f", found {listed(others)}" if others else ""
    if metrics.entry(asked.metric).needs_labels:
        raise DataError(
            f"{missing}, which {asked.metric} requires{found}: set labelKey, provide labels, or set metric: Agreement"
        )
    if asked.label_key != LABELS:
        advice = "set labelKey to the one that holds the labels" if others else "add the labels, or remove labelKey"
        raise DataError(f"{missing}{found}: {advice}")
    if others and asked.metric != Metric.AGREEMENT:
        without = "leave the others out of the file" if asked.metric in metrics.TASKS else "set metric: Agreement"
        raise DataError(f"{missing}{found}: set labelKey to the one that holds the labels; if none does, {without}")


def gather(spec: DataSpec, mounts: Mounts, subject: RunnableModel, specs: Mapping[str, InputSpec], seed: int) -> Data:
    """The given items, or a way to generate some. Raises DataError."""
    axes = stacking_axes(subject.signature, specs, subject.hints)
    given = read(spec, mounts, subject.signature, axes, subject.hints, subject.encoder)
    generator = generate.Generator(subject.signature, subject.hints, specs, axes, seed)
    probes = given.evaluation or given.calibration
    if probes is None:
        recipe = generate.find(generator, subject.run)
        large = sum(array.nbytes for array in generator.items(recipe, 1).arrays.values()) > LARGE_BYTES
        probes = generator.items(recipe, PROOF_ITEMS if large else PROOF_MOST)
    return Data(probes, given, generator, axes)


def enough(given: Data) -> Items:
    """A few items to prove a batch axis with, all different if there are enough."""
    contents = given.probes.hashes() if len(given.probes) < 64 else given.probes.take(list(range(64))).hashes()
    first = [contents.index(one) for one in dict.fromkeys(contents)]
    if len(first) == 2:  # a yes and a no are all that some inputs can be
        first.append(first[0])
    return given.probes.take(first[:PROOF_MOST])


def judged(given: Data, spec: DataSpec, run: RunModel) -> tuple[Data, Items, bool]:
    """The items that candidates are judged on, and whether they were generated; with generated calibration items if those may certify.

    Calibration items are used if none can be generated, unless they would certify.
    """
    if given.split.evaluation is not None:
        return given, given.split.evaluation, False
    asked = spec.generated or GeneratedSpec()
    try:
        recipe = generate.find(given.generator, run)
    except DataError:
        if given.split.calibration is None or asked.allow_lossy:
            raise
        return given, given.split.calibration, True
    count = asked.samples
    if count is None:
        start = time.perf_counter()
        run(given.generator.items(recipe, 1).whole(0))
        slow = time.perf_counter() - start > SLOW_SECONDS
        count = generate.COUNT_SLOW if slow else generate.COUNT
    if asked.allow_lossy and given.split.calibration is None:
        others = replace(given.generator, seed=given.generator.seed + 1)
        calibration = others.items(recipe, min(SPLIT_MOST, count))
        given = replace(given, split=replace(given.split, calibration=calibration))
    return given, given.generator.items(recipe, count), True


def refused(error: RuntimeFailure, spec: DataSpec) -> DataError | SourceError:
    """The error if the model fails on the very first items: a DataError if they were given, else a SourceError."""
    if spec.evaluation is None and spec.calibration is None:
        return failure_of(error)
    return DataError(f"the model does not run on the given items: {error.message}")


def notes(spec: DataSpec, given: Data) -> list[str]:
    """Notes on the items: what was left out and what is missing."""
    items, asked = given.split.evaluation, spec.evaluation
    said = [*given.split.notes, *(items.notes if items is not None else ())]
    if given.split.calibration is not None:
        said.extend(given.split.calibration.notes)
    if given.split.training is not None:
        said.extend(given.split.training.notes)
    if items is None and spec.generated is not None and spec.generated.allow_lossy:
        said.append(
            "no evaluation data: lossy candidates are evaluated on generated items, which say nothing about real ones"
        )
    elif items is None:
        said.append("no evaluation data: only exact candidates can be chosen")
    elif asked is not None and items.labels is None and asked.metric not in (Metric.AGREEMENT, *metrics.TASKS):
        said.append(f"no labels {asked.label_key!r}: candidates are compared with the original's answers")
    return said
