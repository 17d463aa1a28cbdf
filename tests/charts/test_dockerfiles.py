"""What the images promise, read from their Dockerfiles."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LARGE = (
    *("server-torch", "optimizer-torch", "server-gpu", "optimizer-gpu", "server-gpu-torch", "optimizer-gpu-torch"),
    *("optimizer-tensorflow", "optimizer-transformers", "optimizer-sklearn", "server-litert"),
)
DOCKERFILES = {
    name: (ROOT / "docker" / f"Dockerfile.{name}").read_text() for name in ("operator", "server", "optimizer", *LARGE)
}
PROGRAMS = {"operator": "fettle.controller", "server": "fettle.server", "optimizer": "fettle.optimizer"}
PROGRAMS |= {name: PROGRAMS[name.partition("-")[0]] for name in LARGE}
images = pytest.mark.parametrize("name", DOCKERFILES)


@images
def test_an_image_runs_its_program_as_somebody_who_is_not_root(name: str) -> None:
    text = DOCKERFILES[name]
    (entrypoint,) = re.findall(r"(?m)^ENTRYPOINT (.*)$", text)
    assert json.loads(entrypoint) == ["python", "-m", PROGRAMS[name]]
    assert (ROOT / "operator" / PROGRAMS[name].replace(".", "/") / "__main__.py").exists()
    assert re.findall(r"(?m)^USER (.*)$", text) == ["65532:65532"]


@images
def test_only_locked_packages_are_installed(name: str) -> None:
    text = DOCKERFILES[name]
    slim, _, framework = name.partition("-")
    texts = "text" if slim == "server" else ""
    assert f"COPY requirements/{slim}.txt {'requirements/text.txt ' if texts else ''}/tmp/" in text
    assert "uv pip install --python /opt/fettle/bin/python --require-hashes -r" in text
    for lock in filter(None, (slim, framework, texts)):
        text = (ROOT / "requirements" / f"{lock}.txt").read_text()
        assert all("--hash=" in block for block in re.split(r"(?m)^(?=[a-z])", text)[1:])


@pytest.mark.parametrize("name", LARGE)
def test_a_large_image_starts_as_the_slim_one_so_that_they_share_layers(name: str) -> None:
    def first_stage(text: str) -> str:
        return text[text.index("ARG PYTHON") : text.index("FROM ${PYTHON}\n")]

    assert first_stage(DOCKERFILES[name]) == first_stage(DOCKERFILES[name.partition("-")[0]])


@images
def test_code_is_the_last_thing_that_is_copied(name: str) -> None:
    assert re.findall(r"(?m)^COPY (.*)$", DOCKERFILES[name])[-1] == "operator/fettle /opt/fettle/src/fettle"


def test_the_operators_image_has_no_machine_learning_library() -> None:
    lock = (ROOT / "requirements" / "operator.txt").read_text()
    assert not re.findall(r"(?m)^(numpy|onnx|onnxruntime|openvino|nncf|torch|scipy)==", lock)


@pytest.mark.parametrize("name", ["server", "optimizer", *LARGE])
def test_nothing_sends_telemetry(name: str) -> None:
    assert re.search(r"(?m)^ENV CI=true", DOCKERFILES[name])


@pytest.mark.parametrize("name", [name for name in LARGE if "gpu" in name])
def test_an_image_for_gpus_gives_no_pod_a_gpu_that_it_did_not_ask_for(name: str) -> None:
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in DOCKERFILES[name]
    assert not re.search(r"(?m)^ENV.*NVIDIA_VISIBLE_DEVICES", DOCKERFILES[name])


def test_the_build_context_is_nothing_but_code_and_locks() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert "*" in ignored
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    locks = (
        f"requirements/{name}.txt"
        for name in (
            "operator",
            "server",
            "text",
            "optimizer",
            "litert",
            "torch",
            "training",
            "tensorflow",
            "transformers",
            "sklearn",
            "gpu",
            "gpu-torch",
        )
    )
    assert kept == {"operator/fettle", "tools/torch_on_cpu.py", "docker/gpu-packages.sh", *locks}
