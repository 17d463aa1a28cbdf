"""`kubectl fettle status --watch` against a real API server, which goes away for a while."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from tests.cluster.conftest import Kubectl
from tests.cluster.operator_process import eventually

SPEC = {"model": {"ref": {"name": "digits", "target": "cpu"}}}
TARGET = {"name": "cpu", "runtimes": ["onnxruntime"]}
MODEL = {
    "apiVersion": "fettle.dev/v1alpha1",
    "kind": "OptimizedModel",
    "metadata": {"name": "digits"},
    "spec": {"source": {"uri": "pvc://models/m.onnx"}, "targets": [TARGET]},
}
DEPLOYMENT = {
    "apiVersion": "fettle.dev/v1alpha1",
    "kind": "ModelDeployment",
    "metadata": {"name": "digits"},
    "spec": SPEC,
}


class Road:
    """A TCP road to the API server that can be closed."""

    def __init__(self, host: str, port: int) -> None:
        self._there = (host, port)
        self._cars: list[asyncio.StreamWriter] = []
        self.open = True
        self.used = 0

    async def drive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        if not self.open:
            writer.transport.abort()
            return
        self.used += 1
        inward, outward = await asyncio.open_connection(*self._there)
        self._cars += [writer, outward]
        await asyncio.gather(_copy(reader, outward), _copy(inward, writer), return_exceptions=True)

    def close(self) -> None:
        """End every connection, and let no other pass."""
        self.open = False
        for car in self._cars:
            car.transport.abort()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    finally:
        sink.close()


def text(path: Path) -> str:
    return path.read_text()


@pytest.fixture
async def road(kubeconfig: str, tmp_path: Path) -> AsyncIterator[tuple[Road, Path]]:
    """The road, and a kubeconfig that takes it."""
    config = yaml.safe_load(text(Path(kubeconfig)))
    cluster = config["clusters"][0]["cluster"]
    there = urlsplit(cluster["server"])
    assert there.hostname and there.port
    road = Road(there.hostname, there.port)
    server = await asyncio.start_server(road.drive, "127.0.0.1", 0)
    cluster["server"] = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    cluster["tls-server-name"] = there.hostname
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    yield road, path
    server.close()


@asynccontextmanager
async def watching(
    kubeconfig: Path, namespace: str, folder: Path
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Path, Path]]:
    """`kubectl fettle status digits --watch`, and the files that it writes."""
    out, err = folder / "out", folder / "err"
    words = [
        "-m",
        "fettle.cli.kubectl",
        "status",
        "digits",
        "--watch",
        "-n",
        namespace,
        "--kubeconfig",
        str(kubeconfig),
    ]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    with out.open("w") as stdout, err.open("w") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *words, stdout=stdout, stderr=stderr, env=environment
        )
    try:
        yield process, out, err
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def said(path: Path, words: str) -> None:
    """Wait until it holds `words`."""

    async def look() -> bool:
        return words in text(path)

    try:
        await eventually(look, 30)
    except TimeoutError:
        raise AssertionError(f"not said: {words!r}; but: {text(path)}") from None


def serve(kubectl: Kubectl, revision: str) -> None:
    """What the operator would write into status."""
    stable = f'{{"revision": "{revision}", "artifact": "pvc://s/artifacts/1", "replicas": 1, "ready": 1}}'
    kubectl(
        "patch", "mdep", "digits", "--subresource=status", "--type=merge", "-p", f'{{"status": {{"stable": {stable}}}}}'
    )


async def test_it_follows_changes_waits_for_the_api_server_and_ends_with_the_object(
    road: tuple[Road, Path], kubectl: Kubectl, namespace: str, tmp_path: Path
) -> None:
    way, kubeconfig = road
    kubectl.apply(DEPLOYMENT)
    async with watching(kubeconfig, namespace, tmp_path) as (process, out, err):
        await said(out, "modeldeployment/digits")
        serve(kubectl, "aaaa")
        await said(out, "aaaa  1/1 ready")
        kubectl.apply(MODEL)
        await said(out, "optimizedmodel/digits")
        assert way.used <= 6, "it watches and does not ask"
        way.close()
        await said(err, "the API server does not answer")
        serve(kubectl, "bbbb")
        way.open = True
        await said(err, "the API server is reachable again")
        await said(out, "bbbb  1/1 ready")
        kubectl("delete", "om", "digits")
        await said(err, "optimizedmodels/digits was deleted")
        kubectl("delete", "mdep", "digits")
        assert await asyncio.wait_for(process.wait(), 30) == 0
        assert [line.partition(" (")[0] for line in text(err).splitlines()] == [
            "the API server does not answer",
            "the API server is reachable again",
            "optimizedmodels/digits was deleted",
            "modeldeployments/digits was deleted",
        ]
