"""NVIDIA's own client of the protocol, unmodified and with its default settings, against a server process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tests.unit.server.serving import EchoServer
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from fettle.api.signature import DATA_TYPES

DTYPES = [row.v2 for row in DATA_TYPES if row.v2 != "BF16"]  # which onnxruntime does not run beside strings


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoServer]:
    started = EchoServer(tmp_path_factory.mktemp("server"), DTYPES)
    yield started
    started.stop()


@pytest.fixture
def client(server: EchoServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as made:
        yield made


def values(dtype: str, rows: int = 2) -> np.ndarray:
    if dtype == "BYTES":
        return np.array([["", "naïve"], ["日本", "a\0"]][:rows], object)
    if dtype == "BOOL":
        return np.array([[True, False], [False, True]][:rows])
    return np.array([[1, 2], [3, 100]][:rows], triton_to_np_dtype(dtype))


def inputs(rows: int = 2, **forms: Any) -> list[triton.InferInput]:
    made = []
    for dtype in DTYPES:
        tensor = triton.InferInput(f"x_{dtype}", [rows, 2], dtype)
        tensor.set_data_from_numpy(values(dtype, rows), **forms)
        made.append(tensor)
    return made


def expected(dtype: str) -> list[Any]:
    plain = values(dtype).tolist()
    return [[text.encode() for text in row] for row in plain] if dtype == "BYTES" else plain


def test_every_type_comes_back_as_bytes_without_being_asked(client: triton.InferenceServerClient) -> None:
    answer = client.infer("echo", inputs(), request_id="7")
    told = answer.get_response()
    assert (told["id"], told["model_version"]) == ("7", "abc123")
    for dtype in DTYPES:
        assert answer.as_numpy(f"y_{dtype}").tolist() == expected(dtype), dtype
        assert "binary_data_size" in answer.get_output(f"y_{dtype}")["parameters"]


def test_bfloat16_comes_back_as_it_was_sent(tmp_path: Path) -> None:
    server = EchoServer(tmp_path, ["BF16"])
    try:
        with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            tensor = triton.InferInput("x_BF16", [2, 2], "BF16")
            tensor.set_data_from_numpy(values("BF16"))
            assert client.infer("echo", [tensor]).as_numpy("y_BF16").tolist() == expected("BF16")
    finally:
        server.stop()


def test_json_and_bytes_may_be_mixed_as_inputs_and_as_outputs(client: triton.InferenceServerClient) -> None:
    given = inputs()
    for index, dtype in enumerate(DTYPES):
        if index % 2 and dtype != "FP16":  # which this client sends as bytes only
            given[index].set_data_from_numpy(values(dtype), binary_data=False)
    wanted = [
        triton.InferRequestedOutput("y_INT64", binary_data=False),
        triton.InferRequestedOutput("y_FP32"),
        triton.InferRequestedOutput("y_BYTES", binary_data=False),
    ]
    answer = client.infer("echo", given, outputs=wanted, model_version="abc123")
    assert [output["name"] for output in answer.get_response()["outputs"]] == ["y_INT64", "y_FP32", "y_BYTES"]
    for dtype in ("INT64", "FP32"):
        assert answer.as_numpy(f"y_{dtype}").tolist() == expected(dtype)
    assert answer.as_numpy("y_BYTES").tolist() == values("BYTES").tolist()


def test_large_tensors_come_back_whole(client: triton.InferenceServerClient) -> None:
    given = inputs(1)
    large = np.random.default_rng(5).standard_normal((1, 500_001), np.float32)
    position = DTYPES.index("FP32")
    given[position] = triton.InferInput("x_FP32", list(large.shape), "FP32")
    given[position].set_data_from_numpy(large)
    assert np.array_equal(client.infer("echo", given).as_numpy("y_FP32"), large)


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("echo") and client.is_model_ready("echo", "abc123")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("echo")["inputs"][0]["shape"] == [-1, -1]


def test_an_error_is_the_servers_sentence(client: triton.InferenceServerClient) -> None:
    given = inputs()
    given[0]._parameters["binary_data_size"] -= 4
    given[0]._raw_data = given[0]._raw_data[:-4]
    with pytest.raises(
        InferenceServerException, match=r"input x_FP32: shape \[2, 2\] of FP32 needs 16 bytes, found 12"
    ):
        client.infer("echo", given)
