"""`fettle push`: what is sent, what the pod makes of it, and how the pod looks."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.progress import Progress
from tests.unit.cli.api_server import ApiServer, api_server
from tests.unit.cli.pipe import Silent, running

from fettle.cli.access.claim_pod import find_image, parse_target, pod, why_not_running
from fettle.cli.access.cluster import connect
from fettle.cli.access.push_files import Entry, entries, transfer
from fettle.cli.commands.push import transferred
from fettle.cli.main import main
from fettle.cli.pods import receive, send
from fettle.errors import ClusterError, UsageError


def push(source: Path, path: str, root: Path) -> tuple[int, int]:
    """Files that were sent, and bytes that progress was told of."""
    told: list[int] = []
    with running(receive, root) as pipe:
        count = transfer(entries(source, path), pipe, told.append)
    return count, sum(told)


@pytest.fixture
def claim_folder(tmp_path: Path) -> Path:
    """What the pod mounts."""
    folder = tmp_path / "claim"
    folder.mkdir()
    return folder


def test_a_file_arrives_whole_and_once(tmp_path: Path, claim_folder: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(bytes(range(256)) * 5000)
    assert push(source, "digits/first/model.onnx", claim_folder) == (1, source.stat().st_size)
    arrived = claim_folder / "digits" / "first" / "model.onnx"
    assert arrived.read_bytes() == source.read_bytes()
    assert [path.name for path in arrived.parent.iterdir()] == ["model.onnx"], "no temporary file is left"
    assert arrived.parent.stat().st_mode & 0o777 == 0o775, "the volume's group may write beside it"
    assert push(source, "digits/first/model.onnx", claim_folder) == (0, source.stat().st_size)


def test_a_folder_arrives_and_only_what_changed_is_sent_again(tmp_path: Path, claim_folder: Path) -> None:
    source = tmp_path / "digits"
    (source / "deep").mkdir(parents=True)
    for name, text in (("a", "one"), ("deep/b", "two"), ("empty", "")):
        (source / name).write_text(text)
    assert push(source, "digits", claim_folder) == (3, 6)
    (source / "deep" / "b").write_text("six")
    assert push(source, "digits", claim_folder) == (1, 6)
    assert (claim_folder / "digits" / "deep" / "b").read_text() == "six"
    assert (claim_folder / "digits" / "empty").read_bytes() == b""


def test_a_file_that_arrives_damaged_is_refused_and_leaves_nothing(tmp_path: Path, claim_folder: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_text("right")
    (entry,) = entries(source, "m.onnx")
    source.write_text("wrong")
    with running(receive, claim_folder) as pipe, pytest.raises(ClusterError, match=r"m\.onnx was damaged in transit"):
        transfer((entry,), pipe, lambda number: None)
    assert list(claim_folder.iterdir()) == []


def test_a_claim_that_is_too_small_is_named_before_anything_is_sent(tmp_path: Path, claim_folder: Path) -> None:
    entry = Entry(tmp_path, "m.onnx", 1 << 60, "0" * 64)
    with (
        running(receive, claim_folder) as pipe,
        pytest.raises(ClusterError, match="bytes must be written, but the claim has only"),
    ):
        transfer((entry,), pipe, lambda number: None)


def test_a_connection_that_breaks_is_made_again(
    tmp_path: Path, claim_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fettle.cli.commands.push.POLL_SECONDS", 0)
    source = tmp_path / "model.onnx"
    source.write_text("weights")
    files = entries(source, "m.onnx")
    with running(receive, claim_folder) as pipe, Progress(disable=True) as progress:
        task = progress.add_task("model.onnx", total=7)
        connections = iter([Silent(), Silent(), pipe])
        assert transferred(files, lambda: next(connections), progress, task) == 1
        assert progress.tasks[0].completed == 7
        with pytest.raises(ClusterError, match="closed the connection"):
            transferred(files, Silent, progress, task)
    assert (claim_folder / "m.onnx").read_text() == "weights"


def test_what_the_pod_itself_refuses_is_not_tried_again(tmp_path: Path, claim_folder: Path) -> None:
    entry = Entry(tmp_path, "m.onnx", 1 << 60, "0" * 64)
    with running(receive, claim_folder) as pipe, Progress(disable=True) as progress:
        connections = iter([pipe])
        with pytest.raises(ClusterError, match="the claim has only"):
            transferred((entry,), lambda: next(connections), progress, progress.add_task("m.onnx"))


def test_a_pod_that_ends_is_an_error(claim_folder: Path) -> None:
    with pytest.raises(ClusterError, match="closed the connection"):
        transfer((), Silent(), lambda number: None)


TARGETS = [
    ("pvc://models/a/b.onnx", "a/b.onnx"),
    ("pvc://models/a/", "a/m.onnx"),
    ("pvc://models", "m.onnx"),
    ("pvc://models/", "m.onnx"),
    ("pvc://models/with%20space", "with space"),
]


@pytest.mark.parametrize(("uri", "path"), TARGETS)
def test_where_a_file_goes(tmp_path: Path, uri: str, path: str) -> None:
    source = tmp_path / "m.onnx"
    source.touch()
    assert [entry.path for entry in entries(source, parse_target(uri).path)] == [path]


@pytest.mark.parametrize("uri", ["models/m.onnx", "s3://b/m", "pvc:///m", "pvc://models/../m", "pvc://models/m?x=1"])
def test_an_address_that_is_no_claim_is_refused(uri: str) -> None:
    with pytest.raises(UsageError):
        parse_target(uri)


def test_nothing_to_send_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        entries(tmp_path / "nowhere", "")
    with pytest.raises(UsageError, match="contains no files"):
        entries(tmp_path, "")


@pytest.mark.parametrize("read_only", [True, False])
def test_the_pod_meets_the_restricted_level_and_holds_no_token(read_only: bool) -> None:
    spec = pod("models", "image", ("secret",), purpose="push", read_only=read_only)["spec"]
    assert not spec["automountServiceAccountToken"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["imagePullSecrets"] == [{"name": "secret"}]
    assert container["volumeMounts"][0]["readOnly"] == read_only
    first, second = (pod("models", "image", purpose="push")["metadata"]["name"] for _ in range(2))
    assert first != second


CLAIM = "/api/v1/namespaces/default/persistentvolumeclaims"


def pushed(server: ApiServer, folder: Path, *options: str) -> Result:
    """A push into a pod that never starts."""
    (source := folder / "m.onnx").touch()
    given = ["push", str(source), "pvc://models/m", *options, "--timeout", "0"]
    return CliRunner().invoke(main, [*given, "--kubeconfig", str(server.kubeconfig(folder))])


def test_a_missing_claim_is_created_only_when_asked(tmp_path: Path) -> None:
    with api_server() as server:
        refused = pushed(server, tmp_path, "--image", "mine:2")
        assert (refused.exit_code, server.written) == (2, []) and "pass --create" in refused.output
        wanted = ["--create", "--size", "5Gi", "--storage-class", "fast", "--access-mode", "ReadWriteMany"]
        pushed(server, tmp_path, "--image", "mine:2", *wanted)
        method, path, body = server.written[0]
        assert (method, path) == ("POST", CLAIM)
        assert body["spec"] == {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "5Gi"}},
            "storageClassName": "fast",
        }
        server.written.clear()
        server.objects[f"{CLAIM}/models"] = {"metadata": {"name": "models"}}
        pushed(server, tmp_path, "--image", "mine:2", "--create")
        assert CLAIM not in [path for _, path, _ in server.written], "a claim that is there is left as it is"


def test_no_claim_is_created_when_there_is_no_image_for_the_pod(tmp_path: Path) -> None:
    with api_server() as server:
        result = pushed(server, tmp_path, "--create")
        assert (result.exit_code, server.written) == (2, [])
    assert "no running operator was found to take an image from: pass --image" in result.output


def deployments(env: list[dict[str, Any]]) -> dict[str, Any]:
    """The operator's Deployment, as a list answers it."""
    template = {"metadata": {}, "spec": {"containers": [{"name": "operator", "env": env}]}}
    return {"items": [{"metadata": {"name": "fettle"}, "spec": {"selector": {}, "template": template}}]}


def test_the_image_is_the_one_the_operator_serves_with(tmp_path: Path) -> None:
    with api_server() as server:
        cluster = connect(str(server.kubeconfig(tmp_path)), None, None)
        with pytest.raises(UsageError, match="--image"):
            find_image(cluster, None)
        env = [
            {"name": "FETTLE_SERVER_IMAGE", "value": "server:1"},
            {"name": "FETTLE_IMAGE_PULL_SECRETS", "value": "a,b"},
        ]
        server.objects["/apis/apps/v1/deployments"] = deployments(env)
        assert find_image(cluster, None) == ("server:1", ("a", "b"))
        assert find_image(cluster, "mine:2") == ("mine:2", ())


def status(**fields: Any) -> SimpleNamespace:
    """A pod's status."""
    return SimpleNamespace(**{"container_statuses": None, "conditions": None, "message": None, **fields})


def waiting(reason: str, message: str | None = None) -> list[SimpleNamespace]:
    """Container statuses of a container that waits."""
    return [SimpleNamespace(state=SimpleNamespace(waiting=SimpleNamespace(reason=reason, message=message)))]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (status(), ""),
        (status(container_statuses=waiting("ContainerCreating")), ""),
        (status(container_statuses=waiting("ImagePullBackOff", "no such image")), "ImagePullBackOff: no such image"),
        (
            status(
                conditions=[SimpleNamespace(type="PodScheduled", status="False", reason="Unschedulable", message="0/1")]
            ),
            "Unschedulable: 0/1",
        ),
        (status(message="evicted"), "evicted"),
    ],
)
def test_why_a_pod_does_not_run(found: SimpleNamespace, expected: str) -> None:
    assert why_not_running(found) == expected


def test_a_cluster_that_does_not_answer_is_one_line_and_status_1(tmp_path: Path) -> None:
    with api_server() as server:
        kubeconfig = server.kubeconfig(tmp_path)
    source = tmp_path / "m.onnx"
    source.touch()
    result = CliRunner().invoke(main, ["push", str(source), "pvc://models/m", "--kubeconfig", str(kubeconfig)])
    assert result.exit_code == 1
    assert "the API server does not answer" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("program", [send, receive])
def test_what_runs_in_the_pod_needs_nothing_but_the_standard_library(program: ModuleType) -> None:
    """It is sent as text into a pod that may hold another version of Fettle, or none."""
    assert program.__file__ is not None
    lines = Path(program.__file__).read_text().splitlines()
    imported = {line.split()[1].partition(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imported <= sys.stdlib_module_names
