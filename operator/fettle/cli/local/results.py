"""The result of a local run, kept beside its report in the store; `fettle serve NAME` reads it."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from fettle.api.optimizedmodel_status import ArtifactStatus, OptimizedModelStatus
from fettle.cli.access.published import for_target
from fettle.cli.local.manifests import ModelDocument
from fettle.cli.local.mounts import Places
from fettle.errors import UsageError

REPORTS = "reports"


def keep_result(located: Places, manifest: ModelDocument, status: OptimizedModelStatus) -> None:
    """Write the object with its status beside the report, if there is one. Raises StoreError."""
    if status.report is None:
        return
    store = located.opened()
    path = status.report.uri.removeprefix(f"{store.uri}/").removesuffix(".html") + ".json"
    store.write_bytes(path, json.dumps({**manifest.document, "status": status.to_json()}, indent=2).encode())


def published(store: Path, name: str, target: str | None) -> ArtifactStatus:
    """The artifact that the last run of the model `name` published for `target`. Raises UsageError if there is not exactly one."""
    artifacts = next(filter(None, _published(store, name)), None)
    if artifacts is None:
        known = sorted({path.parent.name for path in store.glob(f"{REPORTS}/*/*/*.json")})
        has = f"the store {store} has {', '.join(known)}" if known else f"there is none in the store {store}"
        models = f"{has}; --store names another"
        raise UsageError(f"{name!r} is neither a folder nor a model that `fettle optimize` published: {models}")
    return for_target(name, artifacts, target)


def _published(store: Path, name: str) -> Iterator[tuple[ArtifactStatus, ...]]:
    """The artifacts of each run of that name, latest run first."""
    paths = store.glob(f"{REPORTS}/*/{glob.escape(name)}/*.json")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            yield OptimizedModelStatus.model_validate(json.loads(path.read_bytes())["status"]).artifacts
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise UsageError(f"{path} is damaged, or from another version of Fettle: {error}") from error
