"""The scenarios of the rollout bench. Each changes a ModelDeployment that serves `good`, waits for the end and says how it ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bench.rollout_models import Model
from tools.cluster import lifecycle
from tools.cluster.shell import Progress
from tools.demo import watch
from tools.demo.kube import DemoError, Kube, condition

NAME = "digits"
REPLICAS = 3
STEPS: list[dict[str, Any]] = [{"weight": 34}, {"pause": {"seconds": 5}}, {"weight": 67}, {"weight": 100}]
BY_HAND: list[dict[str, Any]] = [{"weight": 34}, {"pause": {}}, {"weight": 100}]
ANALYSIS = {
    "intervalSeconds": 5,
    "minRequests": 60,
    "failureLimit": 2,
    "successRate": {"min": 0.99},
    # Not 2: a pod that starts takes a core of two from one that serves, and its own first seconds are slow.
    "latency": {"percentile": 50, "maxRatioToStable": 3},
}
AGREEMENT = {"min": 0.98}
CRD = "modeldeployments.fettle.dev"


def tell(line: str) -> None:
    """Show progress."""
    print(f"    {line}", flush=True)


@dataclass
class Stage:
    """One ModelDeployment under load, and who may disturb it."""

    kube: Kube  # the ModelDeployment's namespace
    system: Kube  # the operator's namespace
    models: dict[str, Model]
    variant: int = field(default=0)

    # ------------------------------------------------------------------------------------------------------- changes

    def spec(self, model: str = "good", *, steps: Any = None, **analysis: Any) -> dict[str, Any]:
        """A spec whose revision was never asked for before: the same artifact with another word in the environment is one."""
        self.variant += 1
        return {
            "model": self.models[model].spec(),
            "replicas": REPLICAS,
            "server": {
                "resources": {
                    "requests": {"cpu": "150m", "memory": "384Mi"},
                    "limits": {"cpu": "1", "memory": "384Mi"},
                },
                "env": [{"name": "BENCH_VARIANT", "value": str(self.variant)}],
            },
            "rollout": {"steps": steps or STEPS, "analysis": {**ANALYSIS, **analysis}},
        }

    def change(self, spec: dict[str, Any]) -> None:
        """Replace the spec: what it does not name goes, as with `kubectl replace`."""
        self.kube.replace_spec("mdep", NAME, spec)

    def current(self) -> dict[str, Any]:
        """The spec as it is."""
        return dict(self.found()["spec"])

    def found(self) -> dict[str, Any]:
        """The ModelDeployment."""
        found = self.kube.get("mdep", NAME)
        if found is None:
            raise DemoError(f"ModelDeployment {NAME} is gone")
        return found

    # --------------------------------------------------------------------------------------------------------- looks

    def rolled_out(self) -> str:
        """How the rollout of the last change ended: Promoted or RolledBack, once stable is at full size."""
        outcome = watch.rolled_out(self.kube, NAME, 240, tell)
        self.full()
        return outcome.outcome

    def settled(self) -> None:
        """The last change is obeyed, and nothing more is to be done."""
        watch.serving(self.kube, NAME, 240, tell)
        self.full()

    def full(self) -> None:
        """Wait until the stable revision has all its pods."""
        self.until(lambda found: found["status"]["stable"]["ready"] == REPLICAS, "all pods of the stable revision")

    def until(self, holds: Callable[[dict[str, Any]], Any], what: str, seconds: float = 120) -> None:
        """Wait until the ModelDeployment is as `holds` says."""
        for _ in watch.polls(seconds):
            if holds(self.found()):
                return
        raise DemoError(f"{what}: not within {seconds:.0f} s: {self.found().get('status')}")

    def canary_serves(self) -> str:
        """Wait until the canary has traffic; its revision."""
        self.until(lambda found: (found["status"].get("canary") or {}).get("weight"), "a canary with traffic")
        return str(self.found()["status"]["canary"]["revision"])

    def pods(self, ready: bool = False) -> dict[str, str]:
        """Serving pods that stay: name -> revision."""
        selector = f"fettle.dev/modeldeployment={NAME}"
        found = self.kube.core.list_namespaced_pod(self.kube.namespace, label_selector=selector).items
        return {
            pod.metadata.name: pod.metadata.labels["fettle.dev/revision"]
            for pod in found
            if pod.metadata.deletion_timestamp is None
            and (not ready or any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions or ()))
        }

    # --------------------------------------------------------------------------------------------------- disturbances

    def delete_a_pod(self) -> None:
        """Delete one serving pod, unless it is the last that is ready."""
        ready = sorted(self.pods(ready=True))
        if len(ready) > 1:
            self.kube.kubectl("delete", "pod", ready[int(time.time()) % len(ready)], "--wait=false")

    def delete_the_leader(self) -> None:
        """Delete the operator's pod that holds the Lease."""
        holder = self.system.kubectl("get", "lease", "fettle", "-o", "jsonpath={.spec.holderIdentity}")
        pods = self.system.core.list_namespaced_pod(self.system.namespace).items
        for pod in pods:
            if holder == f"{pod.metadata.name}_{pod.metadata.uid}" and pod.metadata.deletion_timestamp is None:
                self.system.kubectl("delete", "pod", pod.metadata.name, "--wait=false")


@contextmanager
def every(seconds: float, act: Callable[[], None]) -> Iterator[list[float]]:
    """Do something again and again meanwhile; yields the times at which it was done."""
    done: list[float] = []
    stop = threading.Event()
    faults: list[Exception] = []

    def run() -> None:
        while not stop.wait(seconds):
            try:
                act()
            except DemoError as error:
                faults.append(error)
                return
            done.append(time.time())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()
    if faults or not done:
        raise DemoError(f"the disturbance did not happen: {faults}")


# ------------------------------------------------------------------------------------------------------------ scenarios


def good_canary(stage: Stage) -> str:
    """Step by step, the analysis lets it pass."""
    stage.change(stage.spec())
    return stage.rolled_out()


def slow_canary(stage: Stage) -> str:
    """The latency of the stable revision gives it away."""
    return _and_back(stage, stage.spec("slow"))


def wrong_canary(stage: Stage) -> str:
    """Fast, no errors, other answers than the stable revision's."""
    return _and_back(stage, stage.spec("wrong", agreement=AGREEMENT))


def _and_back(stage: Stage, bad: dict[str, Any]) -> str:
    before = stage.current()
    stage.change(bad)
    outcome = stage.rolled_out()
    stage.change(before)
    stage.settled()
    return outcome


def promotion(stage: Stage) -> str:
    """By a person: weight, pause, promote; every pod is replaced."""
    stage.change(stage.spec(steps=BY_HAND))
    stage.until(lambda found: condition(found, "Paused").get("reason") == "WaitingForPromote", "the pause")
    revision = stage.canary_serves()
    stage.kube.kubectl("annotate", "mdep", NAME, f"fettle.dev/promote={revision}/{time.time():.0f}", "--overwrite")
    return stage.rolled_out()


def there_and_back(stage: Stage) -> str:
    """A -> B -> A while B has traffic: none of A's pods that served is restarted."""
    before, kept = stage.current(), set(stage.pods())
    stage.change(stage.spec())
    stage.canary_serves()
    kept &= set(stage.pods())
    stage.change(before)
    stage.settled()
    lost = kept - set(stage.pods())
    return f"Restarted {len(lost)}" if lost or not kept else "Returned"


def third_revision(stage: Stage) -> str:
    """Another revision while a canary has traffic replaces the canary."""
    stage.change(stage.spec())
    second = stage.canary_serves()
    stage.change(stage.spec())
    stage.until(
        lambda found: (found["status"].get("canary") or {}).get("revision", second) != second, "the third revision"
    )
    return stage.rolled_out()


def has_ready(count: int, found: dict[str, Any]) -> bool:
    """Whether so many pods are ready."""
    return bool(found["status"].get("readyReplicas") == count)


def scaling(stage: Stage) -> str:
    """3 -> 5 -> 2 -> 3 pods."""
    for replicas in (5, 2, REPLICAS):
        stage.kube.kubectl("scale", f"modeldeployment/{NAME}", f"--replicas={replicas}")
        stage.until(partial(has_ready, replicas), f"{replicas} ready pods")
    stage.settled()
    return "Scaled"


def pods_deleted(stage: Stage) -> str:
    """A serving pod is deleted every few seconds."""
    with every(6, stage.delete_a_pod) as done:
        time.sleep(32)
    stage.settled()
    return f"Healed {len(done)} times"


def operator_deleted(stage: Stage) -> str:
    """The leading operator pod is deleted every few seconds during a rollout."""
    with every(7, stage.delete_the_leader):
        stage.change(stage.spec())
        outcome = watch.rolled_out(stage.kube, NAME, 240, tell).outcome
    stage.full()
    return outcome


def api_server_restarted(stage: Stage) -> str:
    """The API server is killed and started again while a canary has traffic."""
    stage.change(stage.spec())
    stage.canary_serves()
    assert stage.kube.target.paths is not None, "`needs` says so"
    lifecycle.restart(stage.kube.target.paths, "apiserver", Progress())
    return stage.rolled_out()


@dataclass(frozen=True)
class Scenario:
    """A row of the table."""

    name: str
    play: Callable[[Stage], str]
    expected: str  # how it ends, or begins to say so
    needs: str = ""  # what not every cluster has: `embedded`, or a field of the analysis


SCENARIOS = (
    Scenario("good canary", good_canary, "Promoted"),
    Scenario("slow canary", slow_canary, "RolledBack"),
    Scenario("wrong canary", wrong_canary, "RolledBack", needs="agreement"),
    Scenario("promotion", promotion, "Promoted"),
    Scenario("A -> B -> A", there_and_back, "Returned"),
    Scenario("third revision mid-canary", third_revision, "Promoted"),
    Scenario("scale up and down", scaling, "Scaled"),
    Scenario("a pod deleted every few seconds", pods_deleted, "Healed"),
    Scenario("the operator's pod deleted every few seconds", operator_deleted, "Promoted"),
    Scenario("API server restarted", api_server_restarted, "Promoted", needs="embedded"),
)
