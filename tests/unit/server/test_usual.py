"""The short way of decoding takes nothing that the long way would not take, and makes the same of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fettle.api.signature import Signature, Tensor
from fettle.server import protocol, usual
from fettle.server.request import InferRequest, RequestError

SIGNATURE = Signature(
    inputs=(
        Tensor(name="x", dtype="FP32", shape=(-1, 2), batch_axis=0),
        Tensor(name="n", dtype="INT64", shape=(-1, -1), batch_axis=0),
    ),
    outputs=(),
)
MAX_ROWS = 3


def entry(name: str, datatype: str, shape: Any, data: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data, **more}


X, N = entry("x", "FP32", [1, 2], [1.5, 2]), entry("n", "INT64", [1, 3], [1, 2, 3])


def the_long_way(document: Any, monkeypatch: pytest.MonkeyPatch) -> InferRequest | None:
    """What decoding makes of it without the short way; None where it is refused."""
    with monkeypatch.context() as patched:
        patched.setattr(usual, "read", lambda *arguments: None)
        try:
            return protocol.decode(orjson.dumps(document), SIGNATURE, MAX_ROWS)
        except RequestError:
            return None


def same(one: InferRequest, other: InferRequest) -> bool:
    return (one.rows, one.outputs, one.id) == (other.rows, other.outputs, other.id) and all(
        np.array_equal(one.inputs[name], other.inputs[name]) and one.inputs[name].dtype == other.inputs[name].dtype
        for name in ("x", "n")
    )


@pytest.mark.parametrize(
    "document",
    [
        {"inputs": [X, N]},
        {"inputs": [X, N], "id": "a"},
        {"inputs": [entry("x", "FP32", [2, 2], [[1, 2], [3, 4]]), entry("n", "INT64", [2, 1], [1, 2])]},
    ],
)
def test_a_usual_request_takes_the_short_way(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    request, long = usual.read(orjson.dumps(document), SIGNATURE, MAX_ROWS), the_long_way(document, monkeypatch)
    assert request is not None and long is not None and same(request, long)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"inputs": None},
        {"inputs": [X]},
        {"inputs": [X, N, N]},
        {"inputs": [N, X]},  # the long way takes it
        {"inputs": [X, N], "outputs": []},
        {"inputs": [X, N], "id": 7},
        {"inputs": [X, N], "id": None},
        {"inputs": [X, {**N, "parameters": {}}]},
        {"inputs": [X, "n"]},
        {"inputs": [X, entry("n", "INT32", [1, 3], [1, 2, 3])]},
        {"inputs": [X, entry("n", "INT64", [True, 3], [1, 2, 3])]},
        {"inputs": [X, entry("n", "INT64", [1, -1], [1, 2, 3])]},
        {"inputs": [X, entry("n", "INT64", [1, 3.0], [1, 2, 3])]},
        {"inputs": [X, entry("n", "INT64", "13", [1, 2, 3])]},
        {"inputs": [X, entry("n", "INT64", [2, 1], [1, 2])]},
        {"inputs": [X, entry("n", "INT64", [1, 3], [1, 2, True])]},
        {"inputs": [X, entry("n", "INT64", [1, 3], [1, 2])]},
        {"inputs": [X, entry("n", "INT64", [1, 3], "123")]},
        {"inputs": [entry("x", "FP32", [4, 2], [1] * 8), entry("n", "INT64", [4, 1], [1] * 4)]},
        {"inputs": [entry("x", "FP32", [0, 2], []), entry("n", "INT64", [0, 1], [])]},
        {"inputs": [entry("x", "FP32", [1, 2], [1, 1e39]), N]},
        {"inputs": [X, entry("n", "INT64", [1, 0], [])]},  # beside which another free size may be anything
    ],
)
def test_whatever_is_not_usual_is_left_to_the_long_way(document: Any) -> None:
    assert usual.read(orjson.dumps(document), SIGNATURE, MAX_ROWS) is None


def test_a_body_that_is_no_json_or_large_is_left_to_the_long_way() -> None:
    assert usual.read(b'{"inputs":', SIGNATURE, MAX_ROWS) is None
    large = entry("n", "INT64", [1, 200_000], [1] * 200_000)
    assert usual.read(orjson.dumps({"inputs": [X, large]}), SIGNATURE, MAX_ROWS) is None


def answers(*dtypes: str) -> Signature:
    outputs = tuple(Tensor(name=f"y{at}", dtype=dtype, shape=(-1, 3), batch_axis=0) for at, dtype in enumerate(dtypes))
    return Signature(inputs=(), outputs=outputs)


def arrays(*values: np.ndarray) -> dict[str, np.ndarray]:
    return {f"y{at}": value for at, value in enumerate(values)}


FLOATS = np.array([[1.5, np.nan, -np.inf]], np.float32)
WHOLE = np.array([[1, 2, 3]], np.int64)


@pytest.mark.parametrize("identity", [None, "a"])
@pytest.mark.parametrize(
    ("signature", "outputs"),
    [
        (answers("FP32"), arrays(FLOATS)),
        (answers("FP32", "INT64"), arrays(FLOATS, WHOLE)),
        (answers("FP64"), arrays(FLOATS.astype(np.float64))),
        (answers("UINT8"), arrays(WHOLE.astype(np.uint8))),
        (answers("FP32"), arrays(np.zeros((0, 3), np.float32))),
    ],
)
def test_a_usual_answer_is_the_same_bytes_by_both_ways(
    signature: Signature, outputs: dict[str, np.ndarray], identity: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = InferRequest({}, 1, None, identity)
    answer = usual.write("m", "v", request, signature, outputs)
    assert answer is not None
    monkeypatch.setattr(usual, "write", lambda *arguments: None)
    assert answer == protocol.encode("m", "v", request, signature, outputs)


@pytest.mark.parametrize(
    ("chosen", "signature", "outputs"),
    [
        (("y0",), answers("FP32"), arrays(FLOATS)),
        (None, answers("FP16"), arrays(FLOATS.astype(np.float16))),
        (None, answers("BOOL"), arrays(WHOLE > 1)),
        (None, answers("BYTES"), arrays(np.array([["a", "b", "c"]], object))),
        (None, answers("FP32"), arrays(np.zeros((3, 30_000), np.float32))),
        (None, answers("FP32"), arrays(np.zeros((3, 8), np.float32)[:, ::2])),
    ],
)
def test_an_answer_with_more_to_it_is_left_to_the_long_way(
    chosen: tuple[str, ...] | None, signature: Signature, outputs: dict[str, np.ndarray]
) -> None:
    assert usual.write("m", "v", InferRequest({}, 1, chosen, None), signature, outputs) is None


numbers = st.one_of(st.integers(-2, 5), st.floats(-2, 2), st.booleans(), st.none(), st.just("1"))
sizes = st.lists(st.one_of(st.integers(-1, 4), st.booleans(), st.just(1.0)), max_size=3)
entries = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "n", 1]),
        "datatype": st.sampled_from(["FP32", "INT64"]),
        "shape": sizes,
        "data": st.one_of(st.lists(numbers, max_size=6), st.lists(st.lists(numbers, max_size=3), max_size=3)),
    },
    optional={"parameters": st.just({})},
)
documents = st.fixed_dictionaries(
    {"inputs": st.lists(entries, max_size=3)}, optional={"id": st.sampled_from(["a", 1, None])}
)


@given(document=documents)
def test_nothing_is_taken_that_the_long_way_refuses_or_makes_something_else_of(document: dict[str, Any]) -> None:
    request = usual.read(orjson.dumps(document), SIGNATURE, MAX_ROWS)
    if request is not None:
        with pytest.MonkeyPatch.context() as patched:
            long = the_long_way(document, patched)
        assert long is not None and same(request, long)
