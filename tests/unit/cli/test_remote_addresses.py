"""`fettle optimize` on a model of a web server and items of an object store: it works, and where it does not, it says why and shows no secret."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console
from tests.servers import s3
from tests.servers.web import WebServer, serving
from tests.unit.cli import in_process
from tests.unit.cli.test_misfits import let_through
from tests.unit.cli.test_quantity_metrics import network

from fettle.api.optimizedmodel_status import ArtifactStatus
from fettle.api.reasons import Reason
from fettle.api.uris import Address
from fettle.api.vocabulary import Metric
from fettle.cli.commands.optimize import show
from fettle.cli.local.manifests import read
from fettle.cli.local.mounts import Places, parse_maps, places
from fettle.cli.local.results import keep_result
from fettle.cli.main import main
from fettle.store.manifest import check_fetched, fetch_artifact
from fettle.store.uris import locate

pytest.importorskip("obstore")
pytest.importorskip("moto")
TOKEN = "a-token-that-nobody-sees"


@pytest.fixture(scope="module")
def bucket() -> Iterator[s3.S3Server]:
    with s3.running() as server:
        yield server


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serving(WebServer(token=TOKEN)) as server:
        yield server


def manifest(web: WebServer, **changes: Any) -> dict[str, Any]:
    """An OptimizedModel whose model lies on the web and whose items lie in the bucket."""
    spec: dict[str, Any] = {
        "source": {"uri": f"{web.url}/models/model.onnx", "secretName": "web"},
        "data": {
            "evaluation": {"uri": "s3://models/data/items.npz", "secretName": "bucket", "metric": "Regression"},
        },
        "targets": [{"name": "cpu", "runtimes": ["onnxruntime"]}],
        "recipes": [{"name": "int8", "steps": [{"quantize": {"mode": "Static"}}]}],
        "constraints": {"accuracy": {"maxDrop": 0.1}, "speedup": {"min": 0.01}},
        **changes,
    }
    return {"apiVersion": "fettle.dev/v1alpha1", "kind": "OptimizedModel", "metadata": {"name": "far"}, "spec": spec}


def secrets(tmp_path: Path, bucket: s3.S3Server, **others: str) -> list[str]:
    """What says on the command line where the Secrets lie."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "token").write_text(TOKEN)
    bucket.keys(tmp_path / "bucket", **others)
    return [f"secret/web={tmp_path / 'web'}", f"secret/bucket={tmp_path / 'bucket'}"]


async def test_a_model_of_the_web_and_items_of_a_bucket_give_an_artifact_in_a_bucket(
    web: WebServer, bucket: s3.S3Server, tmp_path: Path
) -> None:
    made, items, answers = network(ruined=False, sigmoid=False)
    web.files["/models/model.onnx"] = made.SerializeToString()
    content = io.BytesIO()
    np.savez(content, x=items, labels=answers)
    maps = parse_maps(secrets(tmp_path, bucket))
    store = {"uri": "s3://models/store", "secretName": "bucket"}
    (document,) = read(yaml.safe_dump(manifest(web, store=store)), "-", tmp_path).models
    located = places(document.spec, maps, None)
    items_at = locate("s3://models/data/items.npz", located.mounts)
    items_at.filesystem.write(items_at.path, content)
    status = await in_process.optimized(located.spec, located.mounts)
    (int8,) = (row for row in status.candidates if row.recipe == "int8")
    assert int8.accuracy is not None and int8.accuracy.metric == Metric.REGRESSION, status.conditions
    assert let_through(status) == [int8.name]
    assert status.report is not None
    assert status.report.uri == "s3://models/store/reports/default/here/1.html"
    keep_result(located, document, status)
    shown = io.StringIO()
    show(Console(file=shown, width=200), document, located, status)
    report = located.opened().read_bytes("reports/default/here/1.html").decode()
    for secret in (TOKEN, bucket.key, bucket.secret):
        assert (
            secret
            not in f"{status}{report}{shown.getvalue()}{located.opened().read_bytes('reports/default/here/1.json')!r}"
        )
    (artifact,) = status.artifacts
    assert f"fettle pull {artifact.uri} ./far && fettle serve ./far" in shown.getvalue()
    assert check_fetched(fetched(artifact, located, tmp_path), artifact.sha256)


def fetched(artifact: ArtifactStatus, located: Places, tmp_path: Path) -> Path:
    """The artifact on this machine."""
    fetch_artifact(artifact.uri, artifact.sha256, tmp_path / "winner", located.mounts)
    return tmp_path / "winner"


def test_the_secret_beside_an_address_is_the_one_that_opens_it(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (document,) = read(yaml.safe_dump(manifest(web)), "-", tmp_path).models
    located = places(document.spec, parse_maps([f"secret/web={tmp_path / 'web'}"]), tmp_path / "store")
    assert document.spec.addresses()["spec.source.uri"] == Address(f"{web.url}/models/model.onnx", "web")
    assert located.mounts.secrets == {
        f"{web.url}/models/model.onnx": tmp_path / "web",
        "s3://models/data/items.npz": None,
    }


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        (
            {"web": "wrong-token-of-mine"},
            Reason.FORBIDDEN,
            "the credentials in Secret web were refused: correct token (401)",
        ),
        (
            {"bucket": "wrong-key-of-mine"},
            Reason.FORBIDDEN,
            "Secret bucket were refused: correct AWS_ACCESS_KEY_ID and",
        ),
        ({"missing": "model"}, Reason.SOURCE_NOT_FOUND, "/models/model.onnx does not exist"),
        ({"missing": "items"}, Reason.DATA_NOT_FOUND, "s3://models/nothing.npz does not exist"),
    ],
)
def test_a_run_that_fails_says_why_and_shows_no_secret(
    change: dict[str, str],
    reason: Reason,
    words: str,
    web: WebServer,
    bucket: s3.S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if change.get("missing") != "model":
        web.files["/models/model.onnx"] = network(ruined=False, sigmoid=False)[0].SerializeToString()
    document = manifest(web)
    if change.get("missing") == "items":
        evaluation = {"uri": "s3://models/nothing.npz", "secretName": "bucket"}
        document = manifest(web, data={"evaluation": evaluation})
    maps = secrets(tmp_path, bucket, **({"AWS_SECRET_ACCESS_KEY": change["bucket"]} if "bucket" in change else {}))
    if "web" in change:
        (tmp_path / "web" / "token").write_text(change["web"])
    Path("om.yaml").write_text(yaml.safe_dump(document))
    result = CliRunner().invoke(
        main, ["optimize", "-f", "om.yaml", "-o", "json", *(part for map in maps for part in ("--map", map))]
    )
    assert result.exit_code == 1
    told = " ".join(result.output.split())
    assert f'"reason": "{reason}"' in told
    assert words in told
    logs = [path.read_text() for path in Path("fettle-store/logs").rglob("*.log")]
    assert logs
    hidden = [TOKEN, bucket.key, bucket.secret, change.get("web", TOKEN), change.get("bucket", TOKEN)]
    for text in (result.output, *logs):
        assert not [secret for secret in hidden if secret in text]
