"""The last stage: check that every winner is whole in the store, push it where the spec says, and write the report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from fettle.api.optimizedmodel import PublishSpec
from fettle.api.reasons import Reason
from fettle.api.report import BuildReport, MeasureReport, PrepareReport, PublishReport, TrainingFigures
from fettle.api.task import PublishTask
from fettle.api.vocabulary import CandidateState
from fettle.errors import StoreError
from fettle.optimizer.report import Material, render, tensorboard
from fettle.store.cache import layers_of, training_of
from fettle.store.manifest import Manifest, artifact_uri, copy_artifact, missing_file, read_stored
from fettle.store.modelpack import Pack, files_in, push
from fettle.store.registry import registry_at
from fettle.store.store import Store
from fettle.store.uris import Mounts, store_missing

log = logging.getLogger(__name__)
ReportT = TypeVar("ReportT", PrepareReport, BuildReport, MeasureReport)
ToldT = TypeVar("ToldT")


def run(task: PublishTask, store: Store, mounts: Mounts) -> PublishReport:
    """Publish what `task` names.

    Raises StoreError: ArtifactNotFound or ArtifactTampered where a winner is not whole, StoreNotFound where an answer that the
    report is made of is gone, and why a registry refused a winner.
    """
    prepare = _answer(store, task.prepare, PrepareReport)
    builds = [_answer(store, key, BuildReport) for key in task.builds]
    measures = [_answer(store, key, MeasureReport) for key in task.measures]
    winners = _winners(task, measures)
    manifests = {digest: _whole(store, digest) for digest in winners.values()}
    registry = {
        target: _push(task.publish, target, (digest, manifests[digest]), store, mounts)
        for target, digest in winners.items()
        if task.publish is not None
    }
    material = Material(
        task=task,
        prepare=prepare,
        builds=builds,
        measures=measures,
        manifests=manifests,
        artifacts={digest: artifact_uri(store.uri, digest) for digest in manifests},
        registry=registry,
        trainings=_told(prepare, builds, partial(training_of, store), lambda build: build.training),
        layers=_told(prepare, builds, partial(layers_of, store), lambda build: build.layers),
    )
    folder = f"reports/{task.namespace}/{task.name}/{task.generation}"
    _write_curves(store, f"{folder}.tensorboard", material.trainings)
    path = f"{folder}.html"
    store.write_bytes(path, render(material).encode())
    log.info("report written to %s/%s", store.uri, path)
    return PublishReport(report_uri=f"{store.uri}/{path}", artifacts=winners, registry=registry or None)


def _push(to: PublishSpec, target: str, artifact: tuple[str, Manifest], store: Store, mounts: Mounts) -> str:
    """The address, by digest, of an artifact of the store in the registry. Raises StoreError."""
    registry, _ = registry_at(to.uri, mounts.credentials(to.uri), store_missing)
    with TemporaryDirectory(prefix="fettle-") as folder:
        copy_artifact(store, artifact[0], Path(folder))
        pack = Pack(files_in(Path(folder)), artifact)
        address = push(pack, registry, lambda _: None, store_missing, target)
    log.info("artifact %s pushed to %s", artifact[0], address)
    return address


def _told(
    prepare: PrepareReport,
    builds: list[BuildReport],
    kept: Callable[[str], ToldT | None],
    told: Callable[[BuildReport], ToldT | None],
) -> dict[str, ToldT]:
    """What builds told, by their names: those of this run (`told`), and earlier ones whose files it took as they were (`kept`, by key).

    Raises StoreError.
    """
    taken = [entry for entry in prepare.builds if entry.built is not None]
    found = {entry.name: kept(entry.cache_key) for entry in taken} | {build.name: told(build) for build in builds}
    return {name: what for name, what in found.items() if what}


def _write_curves(store: Store, folder: str, trainings: Mapping[str, TrainingFigures]) -> None:
    """An event file of TensorBoard for each build that trained, in a folder of its name. Raises StoreError."""
    for name, figures in trainings.items():
        content = tensorboard.events(figures, ended=time.time())
        store.write_bytes(f"{folder}/{name}/{tensorboard.NAME}", content)


def _answer(store: Store, task_hash: str, kind: type[ReportT]) -> ReportT:
    report = store.result(task_hash)
    if not isinstance(report, kind):
        message = f"{store.uri}/results/{task_hash}.json: expected a {kind.__name__}, found {type(report).__name__}"
        raise StoreError(message, reason=Reason.STORE_NOT_FOUND, retryable=True)
    return report


def _winners(task: PublishTask, measures: list[MeasureReport]) -> dict[str, str]:
    """Digest of the winner of each target that has one. Raises StoreError where a winner left no artifact."""
    digests = {
        (row.target, row.name): row.artifact
        for report in measures
        for row in report.candidates
        if row.artifact is not None
    }
    winners: dict[str, str] = {}
    for verdict in task.verdicts:
        if verdict.state != CandidateState.SELECTED:
            continue
        digest = digests.get((verdict.target, verdict.candidate))
        if digest is None:
            message = f"{verdict.candidate} was chosen for {verdict.target}, but no measurement of this run contains its artifact"
            raise StoreError(message, reason=Reason.ARTIFACT_NOT_FOUND)
        winners[verdict.target] = digest
    return winners


def _whole(store: Store, digest: str) -> Manifest:
    """The manifest of an artifact, every file of which is in the store with the digest it lists. Raises StoreError."""
    manifest = read_stored(store, digest)
    if (file := missing_file(store, manifest)) is not None:
        message = f"{file.path} of artifact {digest}: {store.uri}/blobs/{file.sha256} is missing or was changed"
        raise StoreError(message, reason=Reason.ARTIFACT_TAMPERED)
    log.info("artifact %s verified", digest)
    return manifest
