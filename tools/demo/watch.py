"""Watch objects until something is true, and tell each change once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kubernetes import client

from fettle.cli.local.process import last_words
from fettle.plan.rollout.analysis import SINCE
from tools.demo.kube import DemoError, Kube, condition, is_current
from tools.demo.room import Room

Found = dict[str, Any]
SILENT_SECONDS = 30.0  # without a new message
GOING = {"Preparing", "Optimizing", "Measuring", "Publishing"}  # reasons of a run that has not ended


def polls(seconds: float, every: float = 0.5, kube: Kube | None = None) -> Iterator[float]:
    """Yields the elapsed seconds until the time is over. With `kube`: raises DemoError once a pod of its namespace waits in vain."""
    room = Room(kube) if kube else None
    start = time.monotonic()
    while (elapsed := time.monotonic() - start) < seconds:
        yield elapsed
        if room:
            room.check()
        time.sleep(every)


def deployed(kube: Kube, selector: str, seconds: float) -> None:
    """Wait until the selected Deployments run as they are specified. Raises DemoError with pods and events when they do not."""
    apps = client.AppsV1Api(kube.api)
    try:
        for _ in polls(seconds, kube=kube):
            found = apps.list_namespaced_deployment(kube.namespace, label_selector=selector).items
            if found and all(_rolled_out(one) for one in found):
                return
    except DemoError as error:
        raise DemoError(f"{error}\n{kube.kubectl('get', 'pods,events', check=False)}") from error
    seen = kube.kubectl("get", "pods,events", check=False)
    raise DemoError(f"Deployments with {selector} do not run as specified within {seconds:.0f} s:\n{seen}")


def _rolled_out(deployment: client.V1Deployment) -> bool:
    wanted, status = deployment.spec.replicas, deployment.status
    counts = {status.replicas or 0, status.updated_replicas or 0, status.available_replicas or 0}
    return (status.observed_generation or 0) >= deployment.metadata.generation and counts == {wanted}


def has_failed(found: Found | None) -> bool:
    """Whether an OptimizedModel ended without an artifact, and nothing but a change of it will go on."""
    ready = condition(found, "Ready")
    return is_current(found) and ready.get("status") == "False" and ready.get("reason") not in GOING


def optimized(kube: Kube, name: str, seconds: float, tell: Callable[[str], None]) -> Found:
    """Wait until an OptimizedModel is Ready; tells each new message of its Ready condition, and what its Job does while there is none.

    Raises DemoError on a fault.
    """
    told, told_at = "", 0.0
    for elapsed in polls(seconds, kube=kube):
        found = kube.get("om", name)
        ready = condition(found, "Ready")
        line = f"{ready['reason']}: {ready['message']}" if ready else "waiting for the operator"
        if line != told:
            told, told_at = line, elapsed
            tell(f"{elapsed:5.0f} s  {name}: {line}")
        elif elapsed - told_at >= SILENT_SECONDS:
            told_at = elapsed
            tell(f"{elapsed:5.0f} s  {name}: {_last_words(kube, name) or line}")
        if found is None or not is_current(found):
            continue
        if ready.get("status") == "True":
            return found
        if has_failed(found):
            raise DemoError(f"OptimizedModel {name} ended as {line}")
    raise DemoError(f"OptimizedModel {name} was not Ready within {seconds:.0f} s: {told}")


def _last_words(kube: Kube, name: str) -> str:
    """What the running Job of that OptimizedModel said last in its log; empty while none runs."""
    selector = ("--selector", f"fettle.dev/optimizedmodel={name}", "--field-selector", "status.phase=Running")
    pods = kube.kubectl("get", "pods", *selector, "-o", "name", check=False).split()
    return last_words(kube.pod_log(pod).strip() for pod in pods)


@dataclass(frozen=True)
class Rollout:
    """How a rollout ended. Seconds count from the change of the spec; `bad_seconds` from the canary's first weight to weight 0.

    `compared` and `unsure`: the most that one of its windows told.
    """

    revision: str
    outcome: str  # Promoted or RolledBack
    reason: str
    seconds: float
    bad_seconds: float
    compared: int = 0
    unsure: int = 0

    @property
    def ended(self) -> str:
        """How it ended, in words."""
        return "promoted" if self.outcome == "Promoted" else "rolled back"


def told_of_answers(found: Found, compared: int, unsure: int) -> tuple[int, int]:
    """The most items that a window of the canary compared, and left out because stable was unsure, this look included."""
    analysis = (((found.get("status") or {}).get("canary")) or {}).get("analysis") or {}
    return max(compared, analysis.get("compared", 0)), max(unsure, analysis.get("unsure", 0))


def _line(found: Found) -> str:
    status = found.get("status") or {}
    stable, canary = status.get("stable") or {}, status.get("canary") or {}
    text = f"stable {stable.get('revision', '-')} {stable.get('ready', 0)}/{stable.get('replicas', 0)}"
    if canary:
        text += (
            f" · canary {canary.get('revision')} {canary.get('ready', 0)}/{canary.get('replicas', 0)}"
            f" · step {canary.get('step', 0)} · weight {canary.get('weight', 0)} % (actual {canary.get('actualWeight', 0)} %)"
        )
        analysis = canary.get("analysis") or {}
        if analysis.get("compared"):
            text += f" · {analysis['agreed']} of {analysis['compared']} answers agree ({analysis['unsure']} unsure)"
        if analysis.get("verdict") in ("Bad", "Inconclusive"):
            said = analysis.get("message", "")
            # What is said of the open window does not explain the verdict on the one before.
            text += f" · last window {analysis['verdict']}{';' if said.startswith(SINCE) else ':'} {said}"
    reason = condition(found, "Progressing").get("reason")
    return f"{text} · {reason}" if reason else "waiting for the operator"


def serving(kube: Kube, name: str, seconds: float, tell: Callable[[str], None]) -> Found:
    """Wait until a ModelDeployment serves what its spec asks for. Raises DemoError when it does not."""
    told = ""
    for elapsed in polls(seconds, kube=kube):
        found = kube.get("mdep", name)
        if found is None:
            continue
        line = _line(found)
        if line != told:
            told = line
            tell(f"{elapsed:5.0f} s  {line}")
        progressing, ready = condition(found, "Progressing"), condition(found, "Ready")
        settled = is_current(found) and not (found["status"].get("canary"))
        if settled and ready.get("status") == "True" and progressing.get("status") == "False":
            return found
    raise DemoError(
        f"ModelDeployment {name} was not serving within {seconds:.0f} s: {told}\n{condition(found, 'Ready')}"
    )


def rolled_out(kube: Kube, name: str, seconds: float, tell: Callable[[str], None]) -> Rollout:
    """Wait until the rollout that the last change of the spec began has ended, either way."""
    told, revision, weighted_at, unweighted_at, answers = "", "", 0.0, 0.0, (0, 0)
    for elapsed in polls(seconds, every=0.3, kube=kube):
        found = kube.get("mdep", name)
        if found is None:
            raise DemoError(f"ModelDeployment {name} no longer exists")
        line = _line(found)
        if line != told:
            told = line
            tell(f"{elapsed:5.0f} s  {line}")
        answers = told_of_answers(found, *answers)
        status = found.get("status") or {}
        canary = status.get("canary") or {}
        revision = canary.get("revision", revision)
        if canary.get("actualWeight", 0) > 0:
            weighted_at, unweighted_at = weighted_at or elapsed, 0.0
        elif weighted_at and not unweighted_at:
            unweighted_at = elapsed
        if not is_current(found) or canary or not revision:
            continue
        if (status.get("stable") or {}).get("revision") == revision:
            return Rollout(revision, "Promoted", "", elapsed, 0.0, *answers)
        degraded = condition(found, "Degraded")
        if degraded.get("status") == "True":
            bad = (unweighted_at or elapsed) - (weighted_at or elapsed)
            return Rollout(revision, "RolledBack", degraded.get("message", ""), elapsed, bad, *answers)
    raise DemoError(f"the rollout of {name} did not end within {seconds:.0f} s: {told}")
