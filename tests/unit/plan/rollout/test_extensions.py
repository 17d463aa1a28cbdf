"""What docs/design/where.md says of adding a traffic provider and an analysis metric is done here, in a copy of the package.

Both then take part in the real decision, and the provider in the real controller.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from tests.package_copy import PackageCopy
from tests.unit.plan.rollout.toys import failures, weighted, weighted_routes

# A rollout of `b` to the end, then one of `c`, whose pods fail a few requests.
ROLLOUT = """
import json
from tests.unit.plan.rollout.world import ANALYSIS, STEPS, World

analysis = {**ANALYSIS, "successRate": {"min": 0.5}, **%s}
w = World({"replicas": 3, "rollout": {"steps": STEPS, "analysis": analysis}, "traffic": %s}, routed=%s)
w.until(lambda w: w.condition("Ready")[0] == "True")
w.ask("b")
w.until(lambda w: w.stable == "b").run(10)
w.behaves("c", error_rate=0.2)
w.ask("c")
w.until(lambda w: w.status.failed_revision == "c" or w.stable == "c").run(10)
windows = w.judged[next(entry.name for entry in w.ledger if entry.revision == "c")]
print(json.dumps({
    "routes": [weights for _, weights in w.routes],
    "replicas": w.replicas,
    "stable": w.stable,
    "degraded": w.message("Degraded"),
    "metrics": [measured.to_json() for measured in windows[-1].metrics],
}))
"""

# A revision is served by routes, then the spec asks for another provider.
CONTROLLER = """
import asyncio, json
from tests.api_server import serving
from tests.unit.controller.test_modeldeployment import PATH, Ground, condition, spec, take_over

def routing(server):
    return sorted(obj["metadata"]["name"] for obj in server.objects.values() if "fettle.dev/routes" in str(obj))

async def play():
    async with serving() as (server, client):
        ground = Ground(server, client)
        await ground.serve({"traffic": {"provider": "Weighted"}})
        take_over(ground)
        await ground.look()
        served = {"ready": condition(ground, "Ready")[0], "routing": routing(server)}
        server.store(PATH, {**server.objects[PATH], "spec": spec("a")})
        await ground.look()
        print(json.dumps({**served, "afterwards": routing(server), "then": condition(ground, "Ready")[0]}))

asyncio.run(play())
"""


@pytest.fixture
def package(tmp_path: Path) -> PackageCopy:
    """A fresh copy."""
    return PackageCopy(tmp_path / "package")


def run(package: PackageCopy, script: str) -> dict[str, Any]:
    """What the script says."""
    done = package.python("-c", script)
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def add_provider(package: PackageCopy) -> None:
    """Two files, and an entry each in three lists."""
    for folder, toy, value in (
        ("plan/rollout/providers", weighted, "weighted.provider"),
        ("cluster/routes", weighted_routes, "weighted"),
    ):
        package.add(f"{folder}/weighted.py", inspect.getsource(toy))
        module = f"fettle.{folder.replace('/', '.')}"
        package.enter(f"{folder}/__init__.py", f"from {module} import replicas", ", weighted")
        row = f"    TrafficProvider.WEIGHTED: {value},\n"
        package.enter(f"{folder}/__init__.py", "    TrafficProvider.REPLICAS: replicas,\n", row)
    package.enter("api/modeldeployment.py", '    REPLICAS = "Replicas"\n', '    WEIGHTED = "Weighted"\n')


def add_metric(package: PackageCopy) -> None:
    """One file, and an entry each in two lists."""
    package.add("plan/rollout/metrics/failures.py", inspect.getsource(failures))
    package.enter("plan/rollout/metrics/__init__.py", "from fettle.plan.rollout.metrics import agreement", ", failures")
    package.enter("plan/rollout/metrics/__init__.py", "    agreement.metric,\n", "    failures.metric,\n")
    package.enter(
        "api/modeldeployment.py",
        '    """How a canary is judged while it gets traffic."""\n',
        "    max_failures: int | None = None\n",
    )


def test_a_metric_is_one_file_and_two_entries(package: PackageCopy) -> None:
    add_metric(package)
    without = run(package, ROLLOUT % ({}, {}, False))
    assert (without["stable"], [one["metric"] for one in without["metrics"]]) == ("c", ["successRate"])
    told = run(package, ROLLOUT % ({"maxFailures": 3}, {}, False))
    assert (told["stable"], told["replicas"]) == ("b", {"b": 3})
    assert "failures, 3 at most" in told["degraded"]
    measured = told["metrics"][-1]
    assert (measured["metric"], measured["verdict"], measured["bound"]) == ("failures", "Bad", 3)


def test_a_traffic_provider_is_two_files_and_three_entries(package: PackageCopy) -> None:
    add_provider(package)
    add_metric(package)
    told = run(package, ROLLOUT % ({"maxFailures": 3}, {"provider": "Weighted"}, True))
    to_b = [{"a": 100}, {"a": 66, "b": 34}, {"a": 33, "b": 67}, {"b": 100}]
    assert told["routes"] == [*to_b, {"b": 66, "c": 34}, {"b": 100}]
    assert (told["stable"], told["replicas"]) == ("b", {"b": 3})


def test_the_controller_writes_its_objects_and_deletes_them_when_another_provider_is_asked_for(
    package: PackageCopy,
) -> None:
    add_provider(package)
    told = run(package, CONTROLLER)
    assert told["ready"] == "True"
    assert len(told["routing"]) == 2 and "digits-route" in told["routing"]
    assert (told["afterwards"], told["then"]) == ([], "True")
