"""`fettle serve`: the winner of a run on this machine, and the request that it prints."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.unit.cli.test_manifests import text
from tests.unit.plan.optimize.world import World
from tests.unit.server.serving import ROWS, every_type_model, publish
from tools.ports import free_port
from tools.serving import open_store, saved
from tools.serving import publish as publish_model

from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.signature import Signature, Tensor
from fettle.cli.local.manifests import read
from fettle.cli.local.mounts import places
from fettle.cli.local.results import keep_result
from fettle.cli.main import main
from fettle.store.manifest import copy_artifact, put_reference

LINES = 2  # that are printed when it is ready


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`fettle serve` with these arguments and ports of its own, and what it printed when it was ready."""
    ports = [text for option in ("port", "grpc-port", "management-port") for text in (f"--{option}", str(free_port()))]
    process = subprocess.Popen(
        [sys.executable, "-m", "fettle.cli.main", "serve", *arguments, *ports],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process, [process.stdout.readline().strip() for _ in range(LINES)]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def asked(command: str) -> dict[str, Any]:
    """What the command that is printed gets."""
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=120)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def winner(root: Path) -> Path:
    """The folder of an artifact, as `fettle pull` writes it."""
    sha256 = publish(root)
    copy_artifact(open_store(root / "store"), sha256, root / "winner")
    return root / "winner"


def test_a_folder_is_served_and_the_line_that_is_printed_asks_it(tmp_path: Path) -> None:
    with serving(str(winner(tmp_path))) as (process, (what, command)):
        assert what.startswith("winner: portable in onnxruntime, HTTP on 127.0.0.1:")
        answer = asked(command)
        assert answer["model_name"] == "winner"
        assert answer["outputs"][0]["data"] == ROWS[:1].reshape(-1).tolist(), "an item that it was measured with"
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=120)
        assert (process.returncode, out, error) == (0, "", "")


def test_a_long_request_is_a_file_that_goes_with_the_server(tmp_path: Path) -> None:
    size = 2000
    tensors = [Tensor(name=name, dtype="BYTES" if name[1] == "t" else "FP32", shape=(-1, size), batch_axis=0)
               for name in ("xt", "xf", "yt", "yf")]  # fmt: skip
    signature = Signature(inputs=tuple(tensors[:2]), outputs=tuple(tensors[2:]))
    store = open_store(tmp_path / "store")
    texts = np.array([['it\'s "quoted" $HOME'] * size], object)
    numbers = np.linspace(0, 1, size, dtype=np.float32)[None]
    reference = put_reference(store, {"xt": texts.astype(str), "xf": numbers}, {"yt": texts.astype(str), "yf": numbers})
    sha256 = publish_model(store, saved(every_type_model(signature), tmp_path), signature, reference=reference)
    with serving(str(tmp_path / "store" / "artifacts" / sha256), "--name", "echo") as (process, (_, command)):
        path = Path(command.rpartition("@")[2])
        assert path.is_file() and len(command) < 300
        outputs = {row["name"]: row["data"] for row in asked(command)["outputs"]}
        assert outputs["yt"] == texts[0].tolist()
        np.testing.assert_allclose(outputs["yf"], numbers[0])
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == 0
    assert not path.parent.exists()


def test_a_model_is_served_by_the_name_of_its_run(tmp_path: Path) -> None:
    sha256 = publish(tmp_path)
    kept(tmp_path, sha256)
    with serving("digits", "--store", str(tmp_path / "store")) as (_, (what, command)):
        assert what.startswith("digits: ")
        assert asked(command)["model_version"] == "local"


def kept(root: Path, sha256: str) -> None:
    """The result of a run that published that artifact, beside its report in `root`/store."""
    world = World(speeds={"int8-openvino": (3.0, 0.001)})
    world.settle()
    (artifact,) = world.status.artifacts
    status = world.status.model_copy(update={"artifacts": (artifact.model_copy(update={"sha256": sha256}),)})
    (manifest,) = read(text(), "-", root).models
    found = places(manifest.spec, {"models": root}, root / "store")
    assert status.report is not None
    Path(found.local(status.report.uri)).parent.mkdir(parents=True, exist_ok=True)
    keep_result(found, manifest, status)


def test_a_run_without_a_report_keeps_nothing(tmp_path: Path) -> None:
    (manifest,) = read(text(), "-", tmp_path).models
    keep_result(places(manifest.spec, {"models": tmp_path}, tmp_path / "store"), manifest, OptimizedModelStatus())
    assert list((tmp_path / "store").iterdir()) == []


REFUSED = [
    ("a model that was not optimized", ["nowhere"], "`fettle optimize` published: the store fettle-store has digits"),
    ("a name that is a pattern", ["*"], "'*' is neither a folder nor a model"),
    ("another store", ["digits", "--store", "empty"], "there is none in the store empty; --store names another"),
    ("another target", ["digits", "--target", "gpu"], "digits has no artifact for the target 'gpu' (available: cpu)"),
    ("a target of a folder", ["winner", "--target", "cpu"], "--target chooses among the artifacts of a model"),
    ("a model's file", ["model.onnx"], "run `fettle optimize model.onnx` first"),
    ("the store itself", ["fettle-store"], "`fettle serve NAME --store fettle-store`"),
    ("a folder of something else", ["empty"], "empty has no manifest.json: expected the folder of an artifact"),
    ("a path to nowhere", ["./nowhere"], "./nowhere does not exist: expected the folder of an artifact"),
    ("half an artifact", ["half"], "half has no folder model beside its manifest.json"),
    ("a port that is taken", ["winner", "--port", "TAKEN"], "choose another one with --port"),
    ("a host that is none", ["winner", "--host", "nowhere.invalid"], "cannot listen on nowhere.invalid:8080"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: a store with a model `digits`, an artifact's folder, and what is neither."""
    root = tmp_path_factory.mktemp("serve")
    whole = winner(root)
    kept(root, next((root / "store" / "artifacts").iterdir()).name)
    (root / "store").rename(root / "fettle-store")
    (root / "model.onnx").touch()
    (root / "empty").mkdir()
    (root / "half").mkdir()
    shutil.copy(whole / "manifest.json", root / "half")
    return root


@pytest.mark.parametrize(("what", "arguments", "message"), REFUSED, ids=[line[0] for line in REFUSED])
def test_what_cannot_be_served_is_one_clear_line_and_status_2(
    what: str, arguments: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = [str(taken.getsockname()[1]) if word == "TAKEN" else word for word in arguments]
        free = ["--port", str(free_port())] if "--port" not in told and "--host" not in told else []
        others = ["--grpc-port", str(free_port()), "--management-port", str(free_port())]
        result = CliRunner().invoke(main, ["serve", *told, *free, *others])
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert len(result.output.splitlines()) == 1


def test_an_artifact_that_was_changed_is_not_served(tmp_path: Path) -> None:
    path = winner(tmp_path)
    (path / "model" / "model.onnx").write_bytes(b"something else")
    command = [sys.executable, "-m", "fettle.cli.main", "serve", str(path)]
    ports = [word for option in ("port", "grpc-port", "management-port") for word in (f"--{option}", str(free_port()))]
    done = subprocess.run([*command, *ports], capture_output=True, text=True, check=False, timeout=60, env=os.environ)
    assert done.returncode == 1
    assert "does not match the manifest (ArtifactTampered)" in done.stderr
    assert "Traceback" not in done.stderr
