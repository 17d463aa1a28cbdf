"""The scenes of the demo, in their order."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tools.cluster.target import Target, is_named
from tools.demo import install, show, watch
from tools.demo.chaos import OperatorDeleter
from tools.demo.kube import ROOT, DemoError, Kube, condition
from tools.demo.place import Place
from tools.demo.traffic import Load, Totals, bodies, foreign_failures, over_each_protocol

NAMESPACE = "fettle-demo"
MODELS = ("digits", "digits-better", "digits-slow", "digits-failing", "digits-wrong")
DEPLOYMENT = "digits"
REPORT = ROOT / ".cluster" / "demo" / "digits.html"


@dataclass
class Summary:
    """What the last screen says."""

    speedup: float = 0.0
    drop: float = 0.0
    accuracy: str = ""
    totals: Totals = field(default_factory=dict)
    failed: int = 0
    rollouts: dict[str, watch.Rollout] = field(default_factory=dict)


def _manifest(name: str) -> str:
    return (install.DIGITS / name).read_text()


def setup(kube: Kube, place: Place) -> None:
    """Operator by Helm, files to where they shall lie."""
    show.title("helm upgrade --install fettle charts/fettle")
    install.install(kube)
    show.line(Kube(kube.target, install.SYSTEM_NAMESPACE).kubectl("get", "pods", "--no-headers").strip())
    kube.ensure_namespace()
    show.title(place.pushing)
    place.push(kube)


def optimize(kube: Kube, place: Place, summary: Summary) -> None:
    """All five models through OptimizedModel; the first by the default plan, shown stage by stage."""
    for name in MODELS:
        file = f"optimizedmodel{name.removeprefix('digits')}.yaml"
        if watch.has_failed(kube.get("om", name)):  # a demo that was interrupted, perhaps by the end of its cluster
            show.line(f"{name} failed in an earlier run: starting again")
            kube.kubectl("delete", "om", name, "--wait=true")
        show.title(f"kubectl apply -f examples/digits/{file}")
        kube.apply(place.objects(_manifest(file)))
        found = watch.optimized(kube, name, 1500, show.line)
        show.candidates(found)
        if name == MODELS[0]:
            place.report(kube, name, REPORT)
            show.line(f"report: {REPORT} (from `kubectl fettle report {name}`)")
            artifact = found["status"]["artifacts"][0]
            summary.speedup, summary.drop = artifact.get("speedup", 0.0), artifact.get("accuracyDrop", 0.0)


def deploy(kube: Kube) -> dict[str, Any]:
    """Serve. What an earlier run has rolled out is left as it is; a run that ended before its rollouts did is begun again."""
    show.title("kubectl apply -f examples/digits/modeldeployment.yaml")
    before = kube.get("mdep", DEPLOYMENT)
    if before is not None and not already_rolled_out(before):
        show.line("an earlier run ended during its rollouts: deleting its ModelDeployment first")
        kube.kubectl("delete", "mdep", DEPLOYMENT, "--wait=true")
        before = None
    if before is None:
        kube.apply(_manifest("modeldeployment.yaml"))
    found = watch.serving(kube, DEPLOYMENT, 300, show.line)
    show.line(f"serving at {found['status']['address']['url']}")
    return found


def post(kube: Kube, body: str, deployment: str = DEPLOYMENT) -> dict[str, Any]:
    """The answer of a ModelDeployment to a V2 request. Raises DemoError."""
    # Through the API server's service proxy: reachable wherever kubectl is.
    path = f"/api/v1/namespaces/{kube.namespace}/services/{deployment}:8080/proxy/v2/models/{deployment}/infer"
    configuration = kube.api.configuration
    headers = {"Content-Type": "application/json"}
    answer = kube.api.rest_client.pool_manager.request("POST", configuration.host + path, body=body, headers=headers)
    if answer.status != 200:
        raise DemoError(f"POST {path}: {answer.status} {answer.data[:300]!r}")
    return dict(json.loads(answer.data))


def predict(kube: Kube, summary: Summary, count: int = 20) -> None:
    """Predict some images over V2 REST and compare with their labels."""
    show.title(f"POST /v2/models/{DEPLOYMENT}/infer: {count} images that the model has not seen")
    requests, labels = bodies(install.DIGITS / "evaluation.npz", count, seed=7)
    guesses = []
    for body in requests:
        output = post(kube, body)["outputs"][0]["data"]
        guesses.append(output.index(max(output)))
    right = sum(guess == label for guess, label in zip(guesses, labels, strict=True))
    show.line(f"predicted {' '.join(map(str, guesses))}")
    show.line(f"labels    {' '.join(map(str, labels))}")
    summary.accuracy = f"{right} of {count}"
    show.line(f"{summary.accuracy} right")
    if right < 0.8 * count:
        raise DemoError(f"the served model classified only {summary.accuracy} correctly")


def protocols(kube: Kube, count: int = 20) -> None:
    """The same images as JSON, as bytes and over gRPC, from a pod through the Service: the same answers, in fewer bytes."""
    show.title(f"the same {count} images over each protocol, from a pod to the Service {DEPLOYMENT}")
    requests, _ = bodies(install.DIGITS / "evaluation.npz", count, seed=7)
    told = over_each_protocol(kube, DEPLOYMENT, requests)
    for row in told:
        show.line(f"{row['protocol']:<12} {row['requestBytes']:>7,} bytes  {row['milliseconds']:>7.2f} ms a request")
    require_same_answers(told)
    show.line("the same answers")


def require_same_answers(told: list[Totals]) -> None:
    """Raises DemoError unless every protocol gave the numbers that JSON gave."""
    first, *others = told
    for row in others:
        if not np.allclose(row["answers"], first["answers"], rtol=1e-3, atol=1e-4):
            raise DemoError(f"{row['protocol']} and {first['protocol']} gave other answers to the same requests")


def _follow(kube: Kube, model: str) -> None:
    kube.patch("mdep", DEPLOYMENT, {"spec": {"model": {"ref": {"name": model, "target": "cpu"}}}})


def _scene(kube: Kube, load: Load, model: str, expected: str, text: str) -> watch.Rollout:
    show.title(f"{text}: spec.model.ref.name = {model}")
    _follow(kube, model)
    rollout = watch.rolled_out(kube, DEPLOYMENT, 420, show.line)
    totals = load.totals()
    show.line(f"{rollout.ended} after {rollout.seconds:.0f} s; {totals.get('sent', 0)} requests sent so far")
    if rollout.reason:
        show.line(rollout.reason)
    if rollout.outcome != expected:
        raise DemoError(f"{model}: expected {expected}, got {rollout.outcome}: {rollout.reason}")
    return rollout


def require_differences(rollout: watch.Rollout) -> None:
    """Raises DemoError unless the rollout showed what its title says: answers were compared, and where stable is unsure left out."""
    if not rollout.compared:
        raise DemoError(f"revision {rollout.revision} was promoted, but none of its answers was compared with stable's")
    if not rollout.unsure:
        raise DemoError(
            f"revision {rollout.revision}: {rollout.compared} answers in a window, and stable was reported as sure of all of them; "
            "these models are unsure of about one in six"
        )


def rollouts(kube: Kube, summary: Summary) -> None:
    """Under constant load: a better model to 100 %; a slow, a failing and a wrong one rolled back by themselves."""
    requests, _ = bodies(install.DIGITS / "evaluation.npz", 120, seed=1)
    load = Load(kube, DEPLOYMENT)
    show.title("constant load: half over keep-alive connections, half over new ones")
    load.start(requests, rate=30, clients=6, seconds=1200)
    time.sleep(5)
    scenes = summary.rollouts
    text = "a better model as canary: it differs only where the stable one is unsure"
    scenes["better"] = _scene(kube, load, "digits-better", "Promoted", text)
    require_differences(scenes["better"])
    scenes["slow"] = _scene(kube, load, "digits-slow", "RolledBack", "a canary that is far too slow")
    _back(kube)
    scenes["failing"] = _scene(kube, load, "digits-failing", "RolledBack", "a canary that answers with errors")
    _back(kube)
    text = "a canary that is fast, never fails and is wrong: only the comparison with the stable model shows it"
    scenes["wrong"] = _scene(kube, load, "digits-wrong", "RolledBack", text)
    _back(kube)
    summary.totals = load.stop()
    summary.failed = foreign_failures(summary.totals, {scenes["failing"].revision})


def _back(kube: Kube) -> None:
    # The spec asks for the good model again, as the owner would after a rollback: nothing restarts, Degraded clears.
    _follow(kube, "digits-better")
    watch.serving(kube, DEPLOYMENT, 120, show.line)


def already_rolled_out(found: dict[str, Any]) -> bool:
    """Whether an earlier run left all five revisions in the ledger and the better one serving."""
    rows = (found.get("status") or {}).get("revisions", [])
    return len({row["revision"] for row in rows}) >= 5 and "AnalysisFailed" in [row.get("reason") for row in rows]


def steady(kube: Kube, summary: Summary) -> None:
    """A later run: the rollouts are in the ledger, so only show that what serves still serves."""
    requests, _ = bodies(install.DIGITS / "evaluation.npz", 40)
    load = Load(kube, DEPLOYMENT)
    show.title(
        "20 s of load on the stable revision (the rollouts were done by an earlier run; make demo-clean starts over)"
    )
    load.start(requests, rate=30, clients=6, seconds=120)
    time.sleep(20)
    summary.totals = load.stop()
    summary.failed = foreign_failures(summary.totals, set())


def finish(kube: Kube, summary: Summary) -> None:
    """The summary; raises DemoError when a request failed that should not have."""
    found = kube.get("mdep", DEPLOYMENT) or {}
    show.ledger(found)
    show.title("summary")
    show.line(
        f"{DEPLOYMENT}: speed-up {summary.speedup:.2f} x, accuracy drop {summary.drop:+.4f}, {summary.accuracy} images correct"
    )
    totals = summary.totals
    own = sum(totals["serverErrors"].values()) + totals["transport"] - summary.failed
    show.line(told_of_requests(totals["sent"], own, summary.failed))
    for name, rollout in summary.rollouts.items():
        bad = f", {rollout.bad_seconds:.1f} s with traffic" if rollout.outcome == "RolledBack" else ""
        show.line(f"{name}: {rollout.ended} after {rollout.seconds:.0f} s{bad}")
    for text in next_steps(kube.target, kube.namespace):
        show.line(text)
    ready = condition(found, "Ready").get("status")
    if summary.failed or ready != "True":
        raise DemoError(
            f"{summary.failed} requests failed: {totals['transportKinds']} {totals['samples']}; Ready={ready}"
        )


def told_of_requests(sent: int, own: int, others: int) -> str:
    """How many requests failed. `own`: errors of the canary that is meant to fail."""
    if others:
        return f"{sent} requests sent; {own} errors from the deliberately failing canary, {others} others"
    if own:
        return f"{sent} requests sent; {own} errors, all from the deliberately failing canary, no others"
    return f"{sent} requests sent, none failed"


def next_steps(target: Target, namespace: str = NAMESPACE) -> tuple[str, ...]:
    """How to look around, and how to stop what the demo started."""
    stop = (
        "make demo-clean"
        if is_named()
        else "make cluster-down, which keeps what was built (make clean removes that too)"
    )
    return (
        f"look around: export KUBECONFIG={target.kubeconfig}; kubectl -n {namespace} get om,mdep,pods",
        f"why: . .venv/bin/activate; kubectl fettle why {DEPLOYMENT} -n {namespace}",
        f"stop: {stop}",
    )


def run(kube: Kube, place: Place, delete_operator_every: float | None = None) -> None:
    """The whole demo; with `delete_operator_every` seconds the operator's pods are deleted that often while it runs."""
    summary = Summary()
    setup(kube, place)
    if delete_operator_every is None:
        _scenes(kube, place, summary)
    else:
        with OperatorDeleter(kube, delete_operator_every) as chaos:
            _scenes(kube, place, summary)
        show.line(f"the operator's pods were deleted {chaos.deleted} times")
    finish(kube, summary)


def _scenes(kube: Kube, place: Place, summary: Summary) -> None:
    optimize(kube, place, summary)
    found = deploy(kube)
    predict(kube, summary)
    protocols(kube)
    if already_rolled_out(found):
        steady(kube, summary)
    else:
        rollouts(kube, summary)
