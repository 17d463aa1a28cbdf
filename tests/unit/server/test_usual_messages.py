"""The short way of decoding a gRPC message takes nothing that the long way would not take, and makes the same of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fettle.api.signature import Signature, Tensor
from fettle.server import messages
from fettle.server.inference_pb2 import ModelInferRequest
from fettle.server.messages import Messages
from fettle.server.request import InferRequest, RequestError

SIGNATURE = Signature(
    inputs=(
        Tensor(name="x", dtype="FP32", shape=(-1, 2), batch_axis=0),
        Tensor(name="n", dtype="INT64", shape=(-1, -1), batch_axis=0),
    ),
    outputs=(Tensor(name="y", dtype="FP32", shape=(-1, 2), batch_axis=0),),
)
MAX_ROWS = 3
CODEC = Messages("digits", "v1")


def message(rows: int = 1, wide: int = 3, raw: bool = True) -> ModelInferRequest:
    """A request for `rows` items."""
    made = ModelInferRequest(model_name="digits", id="a")
    made.inputs.add(name="x", datatype="FP32", shape=[rows, 2])
    made.inputs.add(name="n", datatype="INT64", shape=[rows, wide])
    x, n = np.arange(2 * rows, dtype=np.float32), np.arange(wide * rows)
    if raw:
        made.raw_input_contents.extend((x.tobytes(), n.tobytes()))
    else:
        made.inputs[0].contents.fp32_contents.extend(x)
        made.inputs[1].contents.int64_contents.extend(n)
    return made


def the_long_way(body: bytes, monkeypatch: pytest.MonkeyPatch) -> InferRequest | str:
    """What decoding makes of it without the short way; as text, why it is refused."""
    with monkeypatch.context() as patched:
        patched.setattr(messages, "MOST_BESIDE", -1)
        try:
            return CODEC.decode(body, SIGNATURE, MAX_ROWS)
        except RequestError as error:
            return error.message


def same(one: InferRequest, other: InferRequest) -> bool:
    """Whether both ask for the same with the same inputs."""
    asked = [(each.rows, each.outputs, each.id, each.binary, each.size) for each in (one, other)]
    return asked[0] == asked[1] and all(
        one.inputs[name].tobytes() == other.inputs[name].tobytes()  # NaN is NaN
        and (one.inputs[name].dtype, one.inputs[name].shape) == (other.inputs[name].dtype, other.inputs[name].shape)
        for name in ("x", "n")
    )


@pytest.mark.parametrize("rows", [1, MAX_ROWS])
@pytest.mark.parametrize("version", ["", "v1"])
def test_a_usual_message_is_decoded_the_short_way(rows: int, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = message(rows)
    made.model_version = version
    long = the_long_way(made.SerializeToString(), monkeypatch)
    monkeypatch.setattr(messages, "split", lambda body: pytest.fail("it was split"))
    short = CODEC.decode(made.SerializeToString(), SIGNATURE, MAX_ROWS)
    assert isinstance(long, InferRequest) and same(short, long)
    assert all(array.flags.aligned for array in short.inputs.values())


def _swap(made: ModelInferRequest) -> None:
    made.inputs[0].CopyFrom(message().inputs[1])
    made.inputs[1].CopyFrom(message().inputs[0])
    made.raw_input_contents.reverse()


CHANGES: dict[str, Callable[[ModelInferRequest], object]] = {
    "typed contents": lambda made: made.CopyFrom(message(raw=False)),
    "typed contents beside raw ones": lambda made: made.inputs[0].contents.fp32_contents.append(1),
    "another order": _swap,
    "another name": lambda made: setattr(made.inputs[0], "name", "z"),
    "another type": lambda made: setattr(made.inputs[0], "datatype", "FP64"),
    "another model": lambda made: setattr(made, "model_name", "letters"),
    "another version": lambda made: setattr(made, "model_version", "v2"),
    "a fixed size that differs": lambda made: made.inputs[0].shape.__setitem__(1, 3),
    "a negative size": lambda made: made.inputs[1].shape.__setitem__(1, -3),
    "too many items": lambda made: made.CopyFrom(message(MAX_ROWS + 1)),
    "no items": lambda made: made.CopyFrom(message(0)),
    "different numbers of items": lambda made: made.inputs[0].shape.__setitem__(0, 2),
    "too few bytes": lambda made: made.raw_input_contents.__setitem__(0, b"1234"),
    "one tensor's bytes too many": lambda made: made.raw_input_contents.append(b""),
    "an input too many": lambda made: made.inputs.add(name="more"),
    "a size of 0": lambda made: (made.inputs[1].shape.__setitem__(1, 0), made.raw_input_contents.__setitem__(1, b"")),
    "no inputs": lambda made: made.ClearField("inputs"),
    "a chosen output": lambda made: made.outputs.add(name="y"),
    "an unknown output": lambda made: made.outputs.add(name="z"),
    "a parameter of the request": lambda made: made.parameters["classification"].CopyFrom(
        made.parameters["classification"]
    ),
    "a parameter of an input": lambda made: setattr(
        made.inputs[0].parameters["shared_memory_region"], "string_param", "r"
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_any_other_message_gets_what_the_long_way_says(
    change: Callable[[ModelInferRequest], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = message()
    change(made)
    body = made.SerializeToString()
    long = the_long_way(body, monkeypatch)
    try:
        found: InferRequest | str = CODEC.decode(body, SIGNATURE, MAX_ROWS)
    except RequestError as error:
        found = error.message
    assert found == long if isinstance(found, str) or isinstance(long, str) else same(found, long)


@given(st.data())
def test_damaged_bytes_get_what_the_long_way_says(data: st.DataObject) -> None:
    body = bytearray(message(2).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with pytest.MonkeyPatch.context() as monkeypatch:
        long = the_long_way(bytes(body), monkeypatch)
    try:
        found: InferRequest | str = CODEC.decode(bytes(body), SIGNATURE, MAX_ROWS)
    except RequestError as error:
        found = error.message
    assert isinstance(found, str) == isinstance(long, str), (found, long)
    assert found == long if isinstance(found, str) or isinstance(long, str) else same(found, long)
