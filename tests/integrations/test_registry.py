"""A model in a real OCI registry (docker-registry): pushed by the command line, optimized from there, and what was made of it pushed and pulled."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from tools.demo.kube import ROOT
from tools.ports import free_port

from fettle.cli.main import main
from fettle.store.manifest import check_fetched

PROGRAM = shutil.which("docker-registry")
LOGIN = {"username": "me", "password": "abc123xyz"}
HTPASSWD = "me:$2a$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW\n"
DIGITS = ROOT / "examples" / "digits"
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs docker-registry, which Debian has")


@dataclass(frozen=True)
class Running:
    """The registry, and a folder with what opens it."""

    host: str
    keys: Path


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Running]:
    port = free_port()
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    settings = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "of these tests"},
        "auth": {"htpasswd": {"realm": "tests", "path": str(tmp_path / "htpasswd")}},
    }
    (tmp_path / "registry.json").write_text(json.dumps(settings))  # JSON is YAML
    keys = tmp_path / "keys"
    keys.mkdir()
    for name, value in LOGIN.items():
        (keys / name).write_text(value)
    assert PROGRAM is not None
    with (tmp_path / "registry.log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, "serve", str(tmp_path / "registry.json")], stdout=log, stderr=log)
    try:
        while not _answers(port):
            assert process.poll() is None, (tmp_path / "registry.log").read_text()
            time.sleep(0.05)
        yield Running(f"127.0.0.1:{port}", keys)
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def run(*words: str) -> str:
    result = CliRunner().invoke(main, [*words])
    assert result.exit_code == 0, result.output
    return str(result.output)


def test_a_model_is_optimized_from_a_registry_and_what_was_made_goes_back_there(
    registry: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keys, models = str(registry.keys), f"oci://{registry.host}/models"
    (tmp_path / "digits").mkdir()
    shutil.copy(DIGITS / "first" / "model.onnx", tmp_path / "digits")
    shutil.copy(DIGITS / "evaluation.npz", tmp_path / "digits")
    run("push", "digits", f"{models}/digits:v1", "--secret", keys)

    source = {"uri": f"{models}/digits:v1/model.onnx", "secretName": "registry"}
    evaluation = {"uri": f"{models}/digits:v1/evaluation.npz", "secretName": "registry"}
    spec = {
        "source": source,
        "data": {"evaluation": evaluation},
        "targets": [{"name": "cpu", "runtimes": ["onnxruntime"]}],
        "recipes": [{"name": "optimized", "steps": [{"optimizeGraph": {}}]}],
        "constraints": {"speedup": {"min": 0.01}},
    }
    document = {
        "apiVersion": "fettle.dev/v1alpha1",
        "kind": "OptimizedModel",
        "metadata": {"name": "digits"},
        "spec": spec,
    }
    (tmp_path / "digits.yaml").write_text(json.dumps(document))
    run(
        "optimize",
        "-f",
        "digits.yaml",
        "--map",
        f"secret/registry={keys}",
        "--store",
        "store",
        "--measure-seconds",
        "1",
    )

    made = min((tmp_path / "store" / "artifacts").iterdir())
    address = run("push", str(made), f"{models}/digits-optimized:v1", "--secret", keys).splitlines()[-1]
    run("pull", address, "pulled", "--secret", keys)
    check_fetched(tmp_path / "pulled", made.name)
