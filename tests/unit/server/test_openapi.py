"""The OpenAPI document of a server, and schemathesis, which holds the server to it with requests that it makes up, right and wrong ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.unit.server.serving import EchoServer

from fettle.api.signature import Signature, Tensor
from fettle.server.openapi import document
from fettle.server.settings import ServerSettings

DTYPES = ("FP32", "FP16", "BOOL", "BYTES")  # for a schema 1.0 is an integer, and for this server it is none


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoServer]:
    started = EchoServer(tmp_path_factory.mktemp("server"), DTYPES, size=2)
    yield started
    started.stop()


@pytest.mark.parametrize(
    ("operations", "chosen"),
    [
        # How many elements data must have for a shape is more than a schema can say, so a right request may be refused there.
        (13, ["--phases", "coverage,fuzzing", "--exclude-checks", "positive_data_acceptance"]),
        (4, ["--phases", "examples", "--include-path-regex", "(:predict|infer)$"]),
        (
            2,
            [
                "--phases",
                "coverage,fuzzing",
                "--include-path-regex",
                ":predict$",
                "--checks",
                "positive_data_acceptance",
            ],
        ),
    ],
    ids=["every path", "the examples", "right requests of the V1 protocol"],
)
def test_schemathesis_finds_nothing(server: EchoServer, tmp_path: Path, operations: int, chosen: list[str]) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{server.port}/openapi.json"]
    options = ["--max-examples", "15", "--generation-deterministic"]
    done = subprocess.run(
        [*command, *options, *chosen, "--no-color"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Tested: {operations}" in done.stdout


def test_the_document_names_the_models_own_paths_and_tensors(server: EchoServer) -> None:
    told = httpx.get(f"http://127.0.0.1:{server.port}/openapi.json").json()
    paths = set(told["paths"])
    assert {"/v2/models/echo/infer", "/v2/models/echo/versions/abc123/infer", "/v1/models/echo:predict"} <= paths
    named = told["components"]["schemas"]["InferRequest"]["properties"]["inputs"]["items"]["anyOf"]
    found = [(one["properties"]["name"]["const"], one["properties"]["datatype"]["const"]) for one in named]
    assert found == [(f"x_{dtype}", dtype) for dtype in DTYPES]


def test_tensors_may_bear_any_name() -> None:
    names = ("name", "optional", "properties", "a/b", "\u00fc")
    tensors = tuple(Tensor(name=name, dtype="FP32", shape=(-1, 2), batch_axis=0) for name in names)
    told = document(ServerSettings(model="m"), Signature(inputs=tensors, outputs=tensors))
    row = told["components"]["schemas"]["PredictRequest"]["properties"]["instances"]["items"]
    assert (tuple(row["properties"]), tuple(row["required"])) == (names, names)
