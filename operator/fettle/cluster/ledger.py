"""The ledger: each time a revision is chosen to serve is one ControllerRevision. Durable, and a list that kubectl can show.

`.revision` is only a serial number; the label carries the revision's hash. `data` never changes: the whole pod template and
the artifact. What happens later is annotated: entered, what the analysis saw, left, reason, message.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime

from fettle.api.base import GROUP, MANAGED_LABEL, REVISION_LABEL
from fettle.api.modeldeployment_status import AnalysisWindow
from fettle.api.reasons import Reason
from fettle.api.text import EVENT_LIMIT, clip
from fettle.cluster.kinds import CONTROLLER_REVISION, MODEL_DEPLOYMENT, Object
from fettle.cluster.owner import child
from fettle.cluster.serving import selector
from fettle.plan import timestamps
from fettle.plan.rollout.state import LedgerEntry, LedgerMark, MarkEntered, MarkJudged, OpenEntry

ENTERED = f"{GROUP}/entered"
LEFT = f"{GROUP}/left"
REASON = f"{GROUP}/reason"
MESSAGE = f"{GROUP}/message"
ANALYSIS = f"{GROUP}/analysis"


def entry_name(name: str, write: OpenEntry) -> str:
    """`<name>-<revision>-<serial>`: the same serial cannot be given twice."""
    return f"{name}-{write.revision}-{write.serial}"


def render(owner: Object, write: OpenEntry, template: Object) -> Object:
    """A new line, with what its pods run."""
    name = owner["metadata"]["name"]
    return {
        **child(
            CONTROLLER_REVISION,
            MODEL_DEPLOYMENT,
            owner,
            entry_name(name, write),
            {**selector(name, write.revision), MANAGED_LABEL: "true"},
        ),
        "revision": write.serial,
        "data": {"artifact": write.artifact, "template": template},
    }


def notes(write: LedgerMark, now: datetime) -> dict[str, str | None]:
    """What a write annotates."""
    if isinstance(write, MarkEntered):
        return {ENTERED: timestamps.write(now)}
    if isinstance(write, MarkJudged):
        windows = [window.to_json() for window in write.windows]
        return {ANALYSIS: json.dumps(windows, separators=(",", ":"))}
    return {LEFT: timestamps.write(now), REASON: write.reason.value, MESSAGE: clip(write.message, EVENT_LIMIT)}


def read(lines: Iterable[Object]) -> tuple[LedgerEntry, ...]:
    """The ledger, oldest first. Something that is no line of ours is passed over."""
    entries = [_entry(line) for line in lines if REVISION_LABEL in (line["metadata"].get("labels") or {})]
    return tuple(sorted(entries, key=lambda entry: entry.serial))


def _entry(line: Object) -> LedgerEntry:
    metadata = line["metadata"]
    said = metadata.get("annotations") or {}
    word = said.get(REASON)
    return LedgerEntry(
        name=metadata["name"],
        serial=int(line.get("revision") or 0),
        revision=metadata["labels"][REVISION_LABEL],
        artifact=str((line.get("data") or {}).get("artifact", "")),
        created=timestamps.read(metadata.get("creationTimestamp")) or datetime.fromtimestamp(0, UTC),
        entered=timestamps.read(said.get(ENTERED)),
        left=timestamps.read(said.get(LEFT)),
        reason=Reason(word) if word in set(Reason) else None,
        message=said.get(MESSAGE, ""),
    )


def template_of(lines: Iterable[Object], revision: str) -> Object | None:
    """The pod template that `revision` runs: its newest line's."""
    own = [line for line in lines if (line["metadata"].get("labels") or {}).get(REVISION_LABEL) == revision]
    newest = max(own, key=lambda line: int(line.get("revision") or 0), default=None)
    template: Object | None = (newest.get("data") or {}).get("template") if newest is not None else None
    return template


def windows_of(line: Object) -> tuple[AnalysisWindow, ...]:
    """What the analysis saw of this line's trial; empty where none was noted, or nobody can read it any more."""
    text = (line["metadata"].get("annotations") or {}).get(ANALYSIS)
    try:
        return tuple(AnalysisWindow.model_validate(window) for window in json.loads(text or "[]"))
    except (ValueError, TypeError):
        return ()
