"""Texts in requests to models that do not take them. What becomes of texts is tested where there are tokenizers: tests/toolchains/transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.unit.server.serving import SIGNATURE, Server, lookup_model
from tools.serving import open_store, saved
from tools.serving import publish as publish_model

from fettle.server.model import load, not_installed
from fettle.server.openapi import document
from fettle.server.settings import ServerSettings
from fettle.store.manifest import copy_artifact, put_tokenizer

TEXT, LINES = "text/plain", "application/x-ndjson"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server"))
    yield started
    started.stop()


def ask(server: Server, content: bytes, kind: str) -> httpx.Response:
    return httpx.post(f"{server.url}/infer", content=content, headers={"Content-Type": kind})


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"The film was not bad.", TEXT),
        (b"The film was not bad.", "Text/Plain; charset=UTF-8"),
        (b'{"text": "The film was not bad."}', LINES),
        (b"", TEXT),
        (b"\xff\0", LINES),
    ],
    ids=["a text", "its type in another case", "a line", "nothing", "bytes"],
)
def test_a_model_without_tokenizer_says_what_to_send_instead(server: Server, content: bytes, kind: str) -> None:
    answer = ask(server, content, kind)
    assert answer.status_code == 415
    assert "its artifact has no tokenizer: send its inputs as JSON or as binary tensors" in answer.json()["error"]
    assert "tokenizer" not in httpx.get(server.url).json()["parameters"]
    unread = answer.headers.get("connection") == "close"
    assert unread == (kind == LINES), "of what may be JSON, only the body tells that it is a text"


def test_json_stays_json_under_the_name_that_browsers_give_it(server: Server) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 1, 2, 3]}
    answer = ask(server, json.dumps({"inputs": [tensor]}).encode(), "text/plain;charset=UTF-8")
    assert answer.status_code == 200
    assert answer.json()["outputs"][0]["data"] == [0, 1, 2, 3]
    refused = ask(server, b'{"input": []}', TEXT)
    assert (refused.status_code, refused.json()["error"]) == (400, 'expected an object with a list "inputs"')


def test_texts_are_described_only_where_they_are_taken() -> None:
    for texts in (True, False):
        described = document(ServerSettings(model="m"), SIGNATURE, texts=texts)["paths"]["/v2/models/m/infer"]["post"]
        assert {TEXT, LINES} & set(described["requestBody"]["content"]) == ({TEXT, LINES} if texts else set())


def test_a_machine_without_the_library_serves_tensors_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path / "store")
    tokenizer = put_tokenizer(store, b"{}", lower=False)
    sha256 = publish_model(store, saved(lookup_model(), tmp_path), SIGNATURE, tokenizer=tokenizer)
    copy_artifact(store, sha256, tmp_path / "model")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    model = load(tmp_path / "model", sha256, None, 1)
    model.close()
    assert model.texts == not_installed("tokenizers", "text")
    assert "the package tokenizers is not installed" in model.texts and "pip install '.[text]'" in model.texts
    assert "texts are not accepted" in caplog.text


def test_a_server_of_a_model_that_takes_no_texts_does_not_import_what_encodes_them() -> None:
    code = (
        "import sys, fettle.server.process as process; process._imported_fronts(); "
        "assert not {name for name in sys.modules if name.split('.')[0] == 'tokenizers'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
