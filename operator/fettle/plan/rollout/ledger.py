"""What the ledger says: which revision is stable, which is the canary, which failed; and the lines to write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fettle.api.modeldeployment_status import CanaryStatus
from fettle.api.reasons import Reason
from fettle.plan.rollout.state import (
    Forget,
    LedgerEntry,
    LedgerWrite,
    MarkEntered,
    MarkJudged,
    MarkLeft,
    OpenEntry,
    RolloutSnapshot,
)

NO_FAULT = frozenset({Reason.SUPERSEDED, Reason.ROLLED_BACK})


@dataclass(frozen=True)
class Exit:
    """Why a revision is removed."""

    reason: Reason
    message: str

    @property
    def failed(self) -> bool:
        """Whether the revision itself was at fault, so that it is not tried again without a command."""
        return self.reason not in NO_FAULT


def newest(entries: Iterable[LedgerEntry], revision: str) -> LedgerEntry | None:
    """The newest line of `revision`, or None."""
    return max((entry for entry in entries if entry.revision == revision), key=lambda entry: entry.serial, default=None)


def live(snapshot: RolloutSnapshot) -> dict[str, LedgerEntry]:
    """The lines without `left`, by revision."""
    open_ones = {}
    for entry in sorted(snapshot.ledger, key=lambda entry: entry.serial):
        if entry.left is None:
            open_ones[entry.revision] = entry
    return open_ones


def find_stable(snapshot: RolloutSnapshot) -> str | None:
    """The stable revision: the one that the Service's annotation names or, if that was lost, an available one.

    Of several, the oldest in the ledger is chosen, because a canary is always newer, and preferably one that the spec does not ask
    for, so that no canary becomes stable without its steps.
    """
    known = {entry.revision for entry in snapshot.ledger} | set(snapshot.workloads)
    if snapshot.stable_annotation in known:
        return snapshot.stable_annotation
    entries = live(snapshot)
    recorded = {entry.revision for entry in snapshot.ledger}
    strangers = {name for name, workload in snapshot.workloads.items() if name not in recorded and workload.pods}
    possible = set(entries) | strangers or {name for name, load in snapshot.workloads.items() if load.ready}

    def rank(revision: str) -> tuple[bool, int, bool, str]:
        entry = entries.get(revision)
        asked = getattr(snapshot.wanted, "revision", None) == revision
        return snapshot.workload(revision).available == 0, entry.serial if entry else 0, asked, revision

    return min(possible, key=rank, default=None)


def on_trial(snapshot: RolloutSnapshot, stable: str | None) -> str | None:
    """The canary: the revision of the newest live line that is not stable."""
    others = [entry for entry in live(snapshot).values() if entry.revision != stable]
    youngest = max(others, key=lambda entry: entry.serial, default=None)
    return youngest.revision if youngest else None


def failure(snapshot: RolloutSnapshot, revision: str, *, forgotten: bool) -> Exit | None:
    """Why `revision` is not tried (again), or None.

    status.failedRevision tells; if a pass ended before it wrote the status, or the status was lost, the ledger tells.
    """
    status = snapshot.status
    entry = newest(snapshot.ledger, revision)
    closed = entry is not None and entry.left is not None and entry.reason is not None and entry.reason not in NO_FAULT
    cut_short = status.canary is not None and status.canary.revision == revision
    youngest = entry is not None and all(other.serial <= entry.serial for other in snapshot.ledger)
    if not (status.failed_revision == revision or (closed and (cut_short or (forgotten and youngest)))):
        return None
    if entry is None or entry.reason is None:
        return Exit(Reason.ABORTED, "it failed before")
    return Exit(entry.reason, entry.message)


def refused(snapshot: RolloutSnapshot, revision: str) -> bool:
    """Whether `revision` was once removed because clients of the stable revision could not use it."""
    reasons = {entry.reason for entry in snapshot.ledger if entry.revision == revision}
    return Reason.SIGNATURE_INCOMPATIBLE in reasons


def writes(
    snapshot: RolloutSnapshot,
    serving: Mapping[str, str],
    exits: Mapping[str, Exit],
    *,
    rendered: str | None,
    kept: str | None,
    replaced: str | None,
) -> tuple[LedgerWrite, ...]:
    """The writes that the ledger needs. `serving`: revision -> artifact, for stable and canary; `exits`: why others are removed.

    `rendered` is the revision whose template follows from the spec. `kept` is a revision whose closed line is still needed. `replaced` is
    the revision whose clients a new canary must be able to serve, if any.
    """
    entries = live(snapshot)
    serial = max((entry.serial for entry in snapshot.ledger), default=0)
    lines: list[LedgerWrite] = []
    for revision, artifact in serving.items():
        if revision not in entries:
            serial += 1
            adopt = revision != rendered or (snapshot.workload(revision).pods > 0 and not _compares(snapshot, revision))
            lines.append(OpenEntry(serial, revision, artifact, adopt, replaced if revision != replaced else None))
    for entry in sorted(snapshot.ledger, key=lambda entry: entry.serial):
        if entry.left is not None:
            continue
        if entry.entered is None and snapshot.workload(entry.revision).ready and snapshot.routed(entry.revision):
            lines.append(MarkEntered(entry.name))
        if entry.revision not in serving or entries[entry.revision] is not entry:
            departure = exits.get(entry.revision) or Exit(Reason.SUPERSEDED, "replaced by another revision")
            lines.append(MarkLeft(entry.name, departure.reason, departure.message))
    return (*lines, *_forget(snapshot, kept))


def _compares(snapshot: RolloutSnapshot, revision: str) -> bool:
    """Whether the pods of `revision`, if there are any, were refused for their inputs and outputs. They would be refused again."""
    entry = newest(snapshot.ledger, revision)
    return entry is not None and entry.reason is Reason.SIGNATURE_INCOMPATIBLE


def judged(snapshot: RolloutSnapshot, canary: CanaryStatus | None) -> tuple[MarkJudged, ...]:
    """The analysis windows of a canary whose rollout has ended: its line keeps them, because the status does not."""
    entry = live(snapshot).get(canary.revision) if canary is not None else None
    if entry is None or canary is None or canary.analysis is None or not canary.analysis.windows:
        return ()
    return (MarkJudged(entry.name, canary.analysis.windows),)


def _forget(snapshot: RolloutSnapshot, kept: str | None) -> list[Forget]:
    """Closed lines beyond the history limit, oldest first; never one whose pods still run or will run again."""
    limit = snapshot.spec.rollout.revision_history_limit
    closed = sorted((entry for entry in snapshot.ledger if entry.left is not None), key=lambda entry: entry.serial)
    needed = {*snapshot.workloads, kept}
    return [Forget(entry.name) for entry in closed[:-limit] if entry.revision not in needed]
