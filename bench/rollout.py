"""Every order of events of a rollout under load on a real cluster, and how many requests failed: `make bench-rollout`.

A pod sends at least 300 requests a second to one ModelDeployment of three pods, half over keep-alive connections, half over new ones, while
the scenarios are played one after the other. A request fails when no whole answer came back within 30 s, or another status than 2xx. Prints a
table and writes bench/results/rollout.json, a list of {scenario, provider, protocol, requests, failed, worstMilliseconds, outcome}. Exit status 1
when a request failed, a scenario ended otherwise than it should, or fewer than 300 requests a second or than 100,000 in all were sent.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from bench.rollout_models import published
from bench.rollout_scenarios import CRD, NAME, SCENARIOS, Scenario, Stage
from kubernetes.client.rest import ApiException
from tools.cluster.paths import TEST, checkout
from tools.cluster.target import resolve_target
from tools.demo import install
from tools.demo.kube import ROOT, DemoError, Kube
from tools.demo.traffic import Load, Totals, bodies
from urllib3.exceptions import HTTPError

from fettle.api.base import API_VERSION

# Its own release and namespace, and a name that other releases leave alone: it disturbs nobody on a cluster that is named.
RELEASE = "fettle-bench"
NAMESPACE = "test-bench-rollout"
RESULTS = ROOT / "bench" / "results" / "rollout.json"
KINDS = {"keep-alive": "REST, keep-alive", "new": "REST, new connections"}
CLIENTS = 12  # callers; far more than 330 requests a second of 5 ms keep busy, and few enough that a slow canary answers them all in time

LEAST_RATE = 300  # requests a second while the scenarios are played
LEAST_REQUESTS = 100_000


@dataclass(frozen=True)
class Played:
    """A scenario that was played, and when (Unix time)."""

    scenario: Scenario
    outcome: str
    start: float
    end: float

    @property
    def right(self) -> bool:
        """Whether it ended as it should."""
        return self.outcome.startswith(self.scenario.expected)


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=330, help="requests a second")
    parser.add_argument("--requests", type=int, default=LEAST_REQUESTS, help="go on until so many were sent")
    parser.add_argument("--only", action="append", help="play only scenarios whose name has this in it; writes no file")
    options = parser.parse_args()
    target = resolve_target(paths=checkout(TEST))
    kube, system = Kube(target, NAMESPACE), Kube(target, f"{RELEASE}-system")
    try:
        stage = prepare(kube, system)
        load = Load(kube, NAME, "load")
        requests, _ = bodies(install.DIGITS / "evaluation.npz", 40)
        load.start(requests, rate=options.rate, clients=CLIENTS, seconds=1500)
        played = [play(stage, one) for one in chosen(kube, options.only)]
        keep_on(load, 0 if options.only else options.requests)
        history = load.history()
        totals = load.stop()
    except DemoError as error:
        print(f"rollout bench: {error}", file=sys.stderr)
        return 1
    clean(kube, system)
    return report(rows([*played, rest(played)], [*history, totals]), totals, played, write=not options.only)


def prepare(kube: Kube, system: Kube) -> Stage:
    """Operator, artifacts, and a ModelDeployment that serves."""
    known = kube.kubectl("get", "crd", CRD, "--ignore-not-found", "-o", "name")
    crds = ("--set", f"crds.enabled={'false' if known else 'true'},crds.keep=false")
    kube.ensure_namespace()
    watched = ("--set", "watchNamespaces={" + NAMESPACE + "}", "--set", "ignoreNamespaces=null")
    install.install(system, *crds, "--set", "replicas=2", *watched, release=RELEASE, namespace=system.namespace)
    stage = Stage(kube, system, published(kube))
    document = {"apiVersion": API_VERSION, "kind": "ModelDeployment", "metadata": {"name": NAME}}
    kube.apply([{**document, "spec": stage.spec()}])
    stage.settled()
    return stage


def clean(kube: Kube, system: Kube) -> None:
    """Take everything away again."""
    kube.kubectl("delete", "namespace", kube.namespace, "--wait=true")
    install.helm(system, "uninstall", RELEASE, "--namespace", system.namespace, "--wait")
    system.kubectl("delete", "namespace", system.namespace, "--wait=false")


def chosen(kube: Kube, only: list[str] | None) -> Iterable[Scenario]:
    """The scenarios to play. Raises DemoError for what this cluster cannot do."""
    schema = json.dumps(yaml.safe_load(kube.kubectl("get", "crd", CRD, "-o", "yaml")))
    has = {"": True, "embedded": kube.target.embedded, "agreement": '"agreement"' in schema}
    for scenario in SCENARIOS:
        if only and not any(word in scenario.name for word in only):
            continue
        if has[scenario.needs]:
            yield scenario
        elif not only:
            raise DemoError(f"{scenario.name}: this cluster has no {scenario.needs}; choose others with --only")


def play(stage: Stage, scenario: Scenario) -> Played:
    """One scenario; a fault of it is its outcome, and ends nothing."""
    start = time.time()
    print(f"== {scenario.name}", flush=True)
    try:
        outcome = scenario.play(stage)
    except (DemoError, ApiException, HTTPError) as error:
        print(error, file=sys.stderr)
        outcome = "Failed"
    print(f"   {outcome} ({time.time() - start:.0f} s)", flush=True)
    return Played(scenario, outcome, start, time.time())


def keep_on(load: Load, requests: int) -> None:
    """Wait until so many requests were sent; 5 minutes at most."""
    deadline = time.monotonic() + 300
    while load.totals().get("sent", 0) < requests and time.monotonic() < deadline:
        time.sleep(2)


def rest(played: list[Played]) -> Played:
    """What was sent before and after the scenarios: nothing happened then, and no request is left out of the table."""
    return Played(
        Scenario("steady", lambda stage: "", "Served"), "Served", 0.0, played[0].start if played else time.time()
    )


def rows(played: Iterable[Played], history: list[Totals]) -> list[dict[str, Any]]:
    """Two rows a scenario, one by kind of connection; whatever lies between two scenarios is booked to `steady`."""
    found = []
    spans = list(played)
    for one in spans:
        for kind, protocol in KINDS.items():
            steady = one.scenario.name == "steady"
            others = [other for other in spans if other is not one]
            lines = [
                line
                for line in pairs(history, kind)
                if any_in(line[0], [one]) or (steady and not any_in(line[0], others))
            ]
            found.append(
                {
                    "scenario": one.scenario.name,
                    "provider": "Replicas",
                    "protocol": protocol,
                    "requests": sum(sent for _, sent, _, _ in lines),
                    "failed": sum(failed for _, _, failed, _ in lines),
                    "worstMilliseconds": max((worst for _, _, _, worst in lines), default=0.0),
                    "outcome": one.outcome,
                }
            )
    return found


def any_in(at: float, spans: Iterable[Played]) -> bool:
    """Whether a moment lies in one of the spans."""
    return any(one.start <= at < one.end for one in spans)


def pairs(history: list[Totals], kind: str) -> list[tuple[float, int, int, float]]:
    """(time, sent, failed, worst) of every second, from totals that only grow."""
    found, before = [], {"sent": 0, "failed": 0}
    for line in history:
        now = line["connections"].get(kind, {"sent": 0, "failed": 0, "worst": 0.0})
        found.append((line["time"], now["sent"] - before["sent"], now["failed"] - before["failed"], now["worst"]))
        before = now
    return found


def report(table: list[dict[str, Any]], totals: Totals, played: list[Played], *, write: bool) -> int:
    """Print the table, write the file; the exit status."""
    widths = {key: max(len(key), *(len(str(row[key])) for row in table)) for key in table[0]}
    print("  ".join(key.ljust(width) for key, width in widths.items()))
    for row in table:
        print("  ".join(str(row[key]).ljust(width) for key, width in widths.items()))
    seconds = played[-1].end - played[0].start if played else 0.0
    rate = sum(row["requests"] for row in table if row["scenario"] != "steady") / max(seconds, 1)
    failed = sum(row["failed"] for row in table)
    print(f"{totals['sent']} requests, {failed} failed; scenarios took {seconds:.0f} s, {rate:.0f} requests/s")
    if totals["transportKinds"] or totals["samples"]:
        print(f"failures: {totals['transportKinds']} {totals['status']} {totals['samples']}", file=sys.stderr)
    if write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(table, indent=1) + "\n")
        print(f"wrote {RESULTS.relative_to(Path.cwd()) if RESULTS.is_relative_to(Path.cwd()) else RESULTS}")
    wrong = missed(totals["sent"], failed, rate, played, whole=write)
    for line in wrong:
        print(f"rollout bench: {line}", file=sys.stderr)
    return 1 if wrong else 0


def missed(sent: int, failed: int, rate: float, played: list[Played], *, whole: bool) -> list[str]:
    """What the run did not keep, a line each. A run of chosen scenarios only (`whole` False) may send fewer than all requests."""
    found = [f"{failed} of {sent} requests failed"] if failed else []
    if rate < LEAST_RATE:
        found.append(
            f"{rate:.1f} requests/s while the scenarios were played, where at least {LEAST_RATE} are asked for"
        )
    if whole and sent < LEAST_REQUESTS:
        found.append(f"{sent} requests, where at least {LEAST_REQUESTS} are asked for")
    names = [one.scenario.name for one in played if not one.right]
    return [*found, f"ended otherwise than expected: {', '.join(names)}"] if names else found


if __name__ == "__main__":
    sys.exit(main())
