"""A ModelDeployment on the stand-in API server: what the cache does not show is read live before anything is taken away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from tests.api_server import ApiServer, serving
from tests.unit.plan.rollout.toys import weighted, weighted_routes

from fettle.api.modeldeployment import TrafficProvider
from fettle.api.modeldeployment_status import ModelDeploymentStatus
from fettle.api.signature import Signature, Tensor
from fettle.cluster import kinds, routes
from fettle.cluster.cache import Cache, version_of
from fettle.cluster.client import Client
from fettle.cluster.events import EventRecorder
from fettle.cluster.kinds import DEPLOYMENT, MODEL_DEPLOYMENT, POD, SERVICE, Object
from fettle.cluster.sync import list_all
from fettle.controller import modeldeployment
from fettle.controller.context import Context
from fettle.plan.rollout import providers
from fettle.settings import Settings

PATH = MODEL_DEPLOYMENT.path("team", "digits")
ROLLOUT = {"steps": [{"weight": 20}, {"pause": {}}, {"weight": 100}]}
MANAGED = "fettle.dev/managed"


def spec(digest: str) -> Object:
    model = {"uri": f"pvc://store/artifacts/{digest * 64}", "sha256": digest * 64, "runtime": "onnxruntime"}
    return {"model": model, "replicas": 10, "rollout": ROLLOUT}


@dataclass
class Ground:
    """One object, the operator's pass over it (`look`) and its pods (`play`)."""

    server: ApiServer
    client: Client
    now: datetime = datetime(2026, 3, 1, tzinfo=UTC)
    cache: Cache = field(default_factory=Cache)

    async def look(self, *, sync: bool = True) -> None:
        """One pass, on what the watches have brought, or on what is in the cache already."""
        self.client.on_write, self.client.on_delete = self.cache.put, self.cache.drop
        recorder = EventRecorder(self.client, lambda: self.now)
        context = Context(Settings(), self.client, self.cache, recorder, lambda: self.now)
        if sync:
            await list_all(self.client, self.cache, context.settings, lambda kind, obj: None)
        await modeldeployment.reconcile(context, "team", "digits")
        self.now += timedelta(seconds=3)

    def play(self) -> None:
        """Every Deployment has all its pods, ready and available."""
        for deployment in self.deployments():
            wanted, template = deployment["spec"]["replicas"], deployment["spec"]["template"]
            path = DEPLOYMENT.path("team", deployment["metadata"]["name"])
            self.server.store(path, {**deployment, "status": {"replicas": wanted, "availableReplicas": wanted}})
            for index in range(wanted):
                ready = {"type": "Ready", "status": "True"}
                name = f"{deployment['metadata']['name']}-{index}"
                body = {"metadata": {"labels": template["metadata"]["labels"]}, "spec": {}}
                self.server.store(POD.path("team", name), {**body, "status": {"conditions": [ready]}})

    def deployments(self) -> list[Object]:
        return [obj for obj in self.server.objects.values() if obj.get("kind") == "Deployment"]

    def replicas(self) -> dict[str, int]:
        """By artifact's digest, as one letter."""
        found = self.deployments()
        return {one["metadata"]["annotations"]["fettle.dev/artifact"][-1]: one["spec"]["replicas"] for one in found}

    async def serve(self, more: Object | None = None) -> Object:
        """Revision `a` serves with ten pods; its Deployment. `more`: of the spec."""
        asked = {**spec("a"), **(more or {})}
        self.server.store(PATH, {"kind": MODEL_DEPLOYMENT.kind, "metadata": {}, "spec": asked})
        for _ in range(3):
            await self.look()
            self.play()
        await self.look()
        (deployment,) = self.deployments()
        return deployment

    def ask(self, digest: str) -> None:
        self.server.store(PATH, {**self.server.objects[PATH], "spec": spec(digest)})


@pytest.fixture
async def ground() -> AsyncIterator[Ground]:
    async with serving() as (server, client):
        yield Ground(server, client)


def without(deployment: Object, labels: set[str]) -> Object:
    metadata = deployment["metadata"]
    kept = {key: value for key, value in metadata["labels"].items() if key not in labels}
    return {**deployment, "metadata": {**metadata, "labels": kept}}


@pytest.mark.parametrize(
    "taken_off",
    [{MANAGED}, {MANAGED, "fettle.dev/modeldeployment", "fettle.dev/revision"}],
    ids=["the label that is watched", "every label"],
)
async def test_a_deployment_that_lost_its_labels_is_never_asked_for_fewer_pods_than_it_has(
    ground: Ground, taken_off: set[str]
) -> None:
    deployment = await ground.serve()
    blind = ground.server.store(DEPLOYMENT.path("team", deployment["metadata"]["name"]), without(deployment, taken_off))
    ground.cache.drop(DEPLOYMENT, "team", blind["metadata"]["name"], blind["metadata"]["uid"], version_of(blind))
    ground.ask("b")
    model = ground.server.objects[PATH]
    ground.cache.put(MODEL_DEPLOYMENT, model)
    await ground.look(sync=False)
    assert ground.replicas()["a"] == 10
    restored = ground.cache.owned(DEPLOYMENT, model["metadata"]["uid"])
    assert any(one["metadata"]["uid"] == blind["metadata"]["uid"] for one in restored), "its labels are put on again"
    for _ in range(4):
        ground.play()
        await ground.look()
    assert ground.replicas() == {"a": 8, "b": 2}


async def test_a_steady_deployment_that_is_out_of_sight_stays_as_it_is_and_is_ready(ground: Ground) -> None:
    deployment = await ground.serve()
    blind = ground.server.store(DEPLOYMENT.path("team", deployment["metadata"]["name"]), without(deployment, {MANAGED}))
    ground.cache.drop(DEPLOYMENT, "team", blind["metadata"]["name"], blind["metadata"]["uid"], version_of(blind))
    await ground.look(sync=False)
    assert ground.replicas() == {"a": 10}
    conditions = ground.server.objects[PATH]["status"]["conditions"]
    assert next(one["status"] for one in conditions if one["type"] == "Ready") == "True"


async def test_url_and_service_say_what_the_stable_revisions_pods_speak(ground: Ground) -> None:
    def said() -> tuple[str, set[str]]:
        status, service = ground.server.objects[PATH]["status"], ground.server.objects[SERVICE.path("team", "digits")]
        return status["address"]["url"].partition(":")[0], {port["appProtocol"] for port in service["spec"]["ports"]}

    await ground.serve()
    assert said() == ("http", {"http", "kubernetes.io/h2c"})
    steps = [{"weight": 20}, {"pause": {"seconds": 30}}, {"weight": 100}]
    asked = {**spec("a"), "server": {"tls": {"secretName": "digits-tls"}}, "rollout": {"steps": steps}}
    ground.server.store(PATH, {**ground.server.objects[PATH], "spec": asked})
    seen = []
    for _ in range(30):
        await ground.look()
        ground.play()
        seen.append((ground.server.objects[PATH]["status"].get("canary") is None, *said()))
    assert seen[4] == (False, "http", {"http", "kubernetes.io/h2c"}), "the canary waits at its pause"
    assert seen[-1] == (True, "https", {"https"})


async def test_a_first_revision_is_announced_as_it_will_answer(ground: Ground) -> None:
    asked = {**spec("a"), "server": {"tls": {"secretName": "digits-tls"}}}
    ground.server.store(PATH, {"kind": MODEL_DEPLOYMENT.kind, "metadata": {}, "spec": asked})
    await ground.look()
    assert ground.server.objects[PATH]["status"]["address"]["url"] == "https://digits.team.svc:8080"
    service = ground.server.objects[SERVICE.path("team", "digits")]
    assert {port["appProtocol"] for port in service["spec"]["ports"]} == {"https"}


def condition(ground: Ground, kind: str) -> tuple[str, str]:
    conditions = ground.server.objects[PATH]["status"]["conditions"]
    return next((one["status"], one["reason"]) for one in conditions if one["type"] == kind)


ODD_STATUS = [
    {"conditions": [{"type": "Ready"}]},
    {"conditions": "none"},
    {"conditions": [{"type": "Ready", "status": "Maybe", "reason": "Serving"}], "observedGeneration": 1},
    {"observedGeneration": "many", "canary": 5},
]


@pytest.mark.parametrize("status", ODD_STATUS)
async def test_a_status_that_cannot_be_read_does_not_keep_a_spec_that_cannot_be_read_from_being_told(
    ground: Ground, status: Object
) -> None:
    broken = {"kind": MODEL_DEPLOYMENT.kind, "metadata": {}, "spec": {**spec("a"), "replicas": "ten"}, "status": status}
    ground.server.store(PATH, broken)
    await ground.look()
    assert condition(ground, "Degraded") == ("True", "InvalidSpec")
    ModelDeploymentStatus.model_validate(ground.server.objects[PATH]["status"])
    ground.server.requests.clear()
    await ground.look()
    assert ground.server.writes() == []


async def test_a_fault_of_the_latest_spec_is_told_of_that_generation(ground: Ground) -> None:
    """Tools read no condition of a status that is older than the spec."""
    await ground.serve()
    stored = ground.server.objects[PATH]
    ground.server.store(PATH, {**stored, "spec": {**spec("b"), "replicas": "ten"}})
    await ground.look()
    found = ground.server.objects[PATH]
    assert found["status"]["observedGeneration"] == found["metadata"]["generation"] > 1
    assert [condition(ground, kind) for kind in ("Stalled", "Reconciling")] == [
        ("True", "InvalidSpec"),
        ("False", "InvalidSpec"),
    ]


@pytest.mark.parametrize("status", ODD_STATUS)
async def test_a_status_that_cannot_be_read_is_built_again(ground: Ground, status: Object) -> None:
    await ground.serve()
    ground.server.store(PATH, {**ground.server.objects[PATH], "status": status})
    await ground.look()
    assert condition(ground, "Ready") == ("True", "Serving")


async def test_an_object_made_anew_waits_for_what_the_one_before_it_left_and_says_that_this_passes(
    ground: Ground,
) -> None:
    await ground.serve()
    before = dict(ground.server.objects)
    del ground.server.objects[PATH]
    ground.server.store(PATH, {"kind": MODEL_DEPLOYMENT.kind, "metadata": {}, "spec": spec("a")})
    ground.cache = Cache()
    await ground.look()
    assert condition(ground, "Progressing") == ("True", "Deploying")
    assert condition(ground, "Degraded")[0] == condition(ground, "Ready")[0] == "False"
    for path in before.keys() - {PATH}:  # as the garbage collector does it
        ground.server.objects.pop(path, None)
    ground.cache = Cache()
    for _ in range(3):
        await ground.look()
        ground.play()
    await ground.look()
    assert condition(ground, "Ready") == ("True", "Serving")


# --------------------------------------------------------------------------------------------------------------- routes

ROUTE = SERVICE.path("team", "digits-route")


@pytest.fixture
def routed(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> Ground:
    """Traffic is routed by the toy provider, and its objects are there for the controller."""
    monkeypatch.setitem(providers.PROVIDERS, TrafficProvider.REPLICAS, weighted.provider)  # type: ignore[arg-type]
    monkeypatch.setitem(routes.ROUTE_OBJECTS, TrafficProvider.REPLICAS, weighted_routes)  # type: ignore[arg-type]
    return ground


def take_over(ground: Ground) -> None:
    """Whoever carries the traffic says that it does so by the route as it is."""
    route = ground.server.objects[ROUTE]
    ground.server.store(ROUTE, {**route, "status": {"observedGeneration": route["metadata"]["generation"]}})


def percents(ground: Ground) -> list[int]:
    """What is routed, ascending."""
    parts = ground.server.objects[ROUTE]["spec"]["externalName"].split(".")
    return sorted(int(part.rpartition("-")[2]) for part in parts)


def backends(ground: Ground) -> int:
    """Services of revisions."""
    services = [obj for obj in ground.server.objects.values() if obj.get("kind") == SERVICE.kind]
    return sum("fettle.dev/revision" in one["spec"].get("selector", {}) and "routes" in str(one) for one in services)


def pods(ground: Ground) -> list[str]:
    return [path for path in ground.server.objects if path.startswith(POD.path("team"))]


async def test_the_controller_writes_what_the_provider_routes_and_waits_until_it_is_in_force(routed: Ground) -> None:
    await routed.serve()
    await routed.look()
    take_over(routed)
    await routed.look()
    assert condition(routed, "Ready") == ("True", "Serving")
    assert (percents(routed), backends(routed)) == ([100], 1)
    routed.ask("b")
    for _ in range(3):
        await routed.look()
        routed.play()
    await routed.look()
    assert (percents(routed), backends(routed), routed.replicas()) == ([20, 80], 2, {"a": 10, "b": 2})
    assert routed.server.objects[PATH]["status"]["canary"]["weight"] == 0
    take_over(routed)
    await routed.look()
    canary = routed.server.objects[PATH]["status"]["canary"]
    assert (canary["weight"], canary["actualWeight"]) == (20, 20)


async def roll_out_at_once(routed: Ground) -> None:
    """A second revision, without steps, has its pods; the route is not in force yet."""
    await routed.serve()
    take_over(routed)
    routed.server.store(PATH, {**routed.server.objects[PATH], "spec": {**spec("b"), "rollout": {"steps": []}}})
    for _ in range(4):
        await routed.look()
        routed.play()


async def test_the_old_revision_and_its_service_go_when_the_route_without_it_is_in_force(routed: Ground) -> None:
    await roll_out_at_once(routed)
    assert (percents(routed), routed.replicas()) == ([100], {"a": 10, "b": 10})
    take_over(routed)
    for _ in range(3):
        await routed.look()
        routed.play()
    assert routed.replicas()["a"] == 0
    for path in pods(routed):
        del routed.server.objects[path]
    routed.play()
    for _ in range(3):
        await routed.look()
    assert (routed.replicas(), backends(routed), percents(routed)) == ({"b": 10}, 1, [100])


async def test_a_route_that_lost_its_labels_is_not_settled_and_gets_them_back_before_pods_go(routed: Ground) -> None:
    await roll_out_at_once(routed)
    take_over(routed)
    route = routed.server.objects[ROUTE]
    bare = routed.server.store(ROUTE, without(route, set(route["metadata"]["labels"])))
    routed.cache.drop(SERVICE, "team", "digits-route", bare["metadata"]["uid"], version_of(bare))
    await routed.look()
    assert routed.replicas() == {"a": 10, "b": 10}
    assert routed.server.objects[ROUTE]["metadata"]["labels"] == route["metadata"]["labels"]


async def test_while_no_pod_is_ready_the_route_stays_as_it_is(routed: Ground) -> None:
    await routed.serve()
    take_over(routed)
    for path in pods(routed):
        unready = {"conditions": [{"type": "Ready", "status": "False"}]}
        routed.server.store(path, {**routed.server.objects[path], "status": unready})
    before = routed.server.objects[ROUTE]["metadata"]["resourceVersion"]
    await routed.look()
    assert routed.server.objects[ROUTE]["metadata"]["resourceVersion"] == before
    assert condition(routed, "Ready")[0] == "False"


async def test_a_provider_without_routes_has_no_object_for_them(ground: Ground) -> None:
    await ground.serve()
    assert not [obj for obj in ground.server.objects.values() if routes.ROUTES_LABEL in str(obj)]


def test_every_provider_has_its_objects_and_each_kind_of_them_is_watched() -> None:
    assert routes.ROUTE_OBJECTS.keys() == set(TrafficProvider)
    assert {kind for objects in routes.ROUTE_OBJECTS.values() for kind in objects.kinds} <= set(kinds.WATCHED)


SIGNATURE = Signature(inputs=(Tensor(name="x", dtype="FP32", shape=(-1, 4)),), outputs=())


def fetch_ended(ground: Ground, digest: str, message: str, *, code: int = 0, ready: bool = True) -> None:
    """The init containers of all pods of an artifact ended so."""
    for deployment in ground.deployments():
        if deployment["metadata"]["annotations"]["fettle.dev/artifact"][-1] != digest:
            continue
        name, labels = deployment["metadata"]["name"], deployment["spec"]["template"]["metadata"]["labels"]
        ended = {"name": "fetch", "state": {"terminated": {"exitCode": code, "message": message}}}
        conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
        for index in range(deployment["spec"]["replicas"]):
            status = {"conditions": conditions, "initContainerStatuses": [ended]}
            body = {"metadata": {"labels": labels}, "spec": {}, "status": status}
            ground.server.store(POD.path("team", f"{name}-{index}"), body)


def compared(ground: Ground, digest: str) -> list[str]:
    """What the pods of an artifact compare their inputs and outputs with."""
    found = (one for one in ground.deployments() if one["metadata"]["annotations"]["fettle.dev/artifact"][-1] == digest)
    containers = (one["spec"]["template"]["spec"]["initContainers"][0] for one in found)
    return [one["value"] for container in containers for one in container["env"] if one["name"].endswith("_REPLACES")]


async def test_a_revision_that_clients_could_not_use_is_refused_by_its_own_pods_until_a_person_insists(
    ground: Ground,
) -> None:
    await ground.serve()
    fetch_ended(ground, "a", SIGNATURE.canonical().decode())
    ground.ask("b")
    await ground.look()
    assert [Signature.model_validate_json(value) for value in compared(ground, "b")] == [SIGNATURE]
    fetch_ended(ground, "b", "SignatureIncompatible: input z is new", code=1, ready=False)
    await ground.look()
    assert ground.replicas() == {"a": 10, "b": 0}
    conditions = {one["type"]: one for one in ground.server.objects[PATH]["status"]["conditions"]}
    assert conditions["Degraded"]["reason"] == conditions["Stalled"]["reason"] == "SignatureIncompatible"
    assert conditions["Degraded"]["message"].endswith("input z is new")
    assert conditions["Ready"]["status"] == "True"
    model = ground.server.objects[PATH]
    failed = model["status"]["failedRevision"]
    noted = {**model["metadata"], "annotations": {"fettle.dev/retry": f"{failed}/1"}}
    ground.server.store(PATH, {**model, "metadata": noted})
    del ground.server.objects[POD.path("team", f"digits-{failed}-0")]  # as its Deployment was told
    await ground.look()
    assert ground.replicas()["b"] > 0 and compared(ground, "b") == []


async def test_pods_that_tell_nothing_of_their_inputs_hold_no_rollout(ground: Ground) -> None:
    await ground.serve()
    fetch_ended(ground, "a", "")
    ground.ask("b")
    await ground.look()
    assert ground.replicas()["b"] > 0 and compared(ground, "b") == []
