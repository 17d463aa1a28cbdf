"""Whether clients of one model can use another: what is told of two signatures is what the server's own checks of requests say."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fettle.api.compatibility import differences
from fettle.api.signature import Signature, Tensor
from fettle.server.checks import require_inputs, require_shape
from fettle.server.request import RequestError


def tensor(name: str, *shape: int, dtype: str = "FP32", batch: int | None = None) -> Tensor:
    return Tensor(name=name, dtype=dtype, shape=shape, batch_axis=batch)


def model(*inputs: Tensor, outputs: tuple[Tensor, ...] = (tensor("y", -1, 2),)) -> Signature:
    return Signature(inputs=inputs, outputs=outputs)


IMAGE, Y = tensor("x", -1, 4), tensor("y", -1, 2)


@pytest.mark.parametrize(
    ("why", "stable", "new"),
    [
        ("the same", model(IMAGE), model(IMAGE)),
        ("any batch where it was one", model(tensor("x", 1, 4)), model(IMAGE)),
        ("a batch that requests may choose, although its file has one", model(IMAGE), model(tensor("x", 1, 4, batch=0))),
        ("inputs in another order", model(IMAGE, tensor("z", 3)), model(tensor("z", 3), IMAGE)),
        ("a further output", model(IMAGE, outputs=(Y,)), model(IMAGE, outputs=(Y, tensor("z", -1)))),
        ("an output whose size is told", model(IMAGE, outputs=(tensor("y", -1, -1),)), model(IMAGE, outputs=(Y,))),
        ("an output whose size is no longer told", model(IMAGE, outputs=(Y,)), model(IMAGE, outputs=(tensor("y", -1, -1),))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_model_that_takes_as_much_or_more_fits(why: str, stable: Signature, new: Signature) -> None:
    assert differences(stable, new) == (), why


@pytest.mark.parametrize(
    ("new", "told"),
    [
        (model(tensor("x", 1, 4)), ("input x is FP32 [1, 4] instead of FP32 [-1, 4]",)),
        (model(tensor("x", -1, 5)), ("input x is FP32 [-1, 5] instead of FP32 [-1, 4]",)),
        (model(tensor("x", -1, 4, 1)), ("input x is FP32 [-1, 4, 1] instead of FP32 [-1, 4]",)),
        (model(tensor("x", -1, 4, dtype="INT8")), ("input x is INT8 [-1, 4] instead of FP32 [-1, 4]",)),
        (model(tensor("image", -1, 4)), ("input x (FP32 [-1, 4]) is missing", "input image (FP32 [-1, 4]) is new")),
        (model(IMAGE, tensor("z", 3)), ("input z (FP32 [3]) is new",)),
        (model(IMAGE, outputs=(tensor("z", -1, 2),)), ("output y (FP32 [-1, 2]) is missing",)),
        (model(IMAGE, outputs=(tensor("y", -1, 3),)), ("output y is FP32 [-1, 3] instead of FP32 [-1, 2]",)),
        (model(IMAGE, outputs=(tensor("y", -1, 2, dtype="FP64"),)), ("output y is FP64 [-1, 2] instead of FP32 [-1, 2]",)),
    ],
)  # fmt: skip
def test_what_clients_would_miss_is_told_of_both_sides(new: Signature, told: tuple[str, ...]) -> None:
    assert differences(model(IMAGE), new) == told


SIZES = (-1, 1, 2)
LARGEST = 3  # of a request: more than any fixed size


@st.composite
def signatures(draw: st.DrawFn) -> Signature:
    names = draw(st.lists(st.sampled_from("ab"), unique=True, max_size=2))
    inputs = []
    for name in names:
        shape = draw(st.lists(st.sampled_from(SIZES), max_size=2))
        batch = draw(st.sampled_from([None, *range(len(shape))]))
        inputs.append(tensor(name, *shape, dtype=draw(st.sampled_from(["FP32", "INT8"])), batch=batch))
    return model(*inputs, outputs=())


def accepted(signature: Signature) -> Iterator[frozenset[tuple[str, str, tuple[int, ...]]]]:
    """Every request that the server's checks let through, as (name, type, shape) of its inputs."""
    shapes = [shape for rank in range(3) for shape in product(range(1, LARGEST + 1), repeat=rank)]
    forms = [(dtype, shape) for dtype in ("FP32", "INT8") for shape in shapes]
    for names in ((), ("a",), ("b",), ("a", "b")):
        try:
            require_inputs(signature, names)
        except RequestError:
            continue
        fit = [
            [form for form in forms if takes(own, *form)] for own in sorted(signature.inputs, key=lambda one: one.name)
        ]
        for chosen in product(*fit):
            yield frozenset((name, *form) for name, form in zip(names, chosen, strict=True))


def takes(own: Tensor, dtype: str, shape: tuple[int, ...]) -> bool:
    try:
        require_shape(own, dtype, shape)
    except RequestError:
        return False
    return True


@given(signatures(), signatures())
def test_a_model_fits_exactly_if_its_server_takes_every_request_of_the_one_before(
    stable: Signature, new: Signature
) -> None:
    assert (differences(stable, new) == ()) is (set(accepted(stable)) <= set(accepted(new)))


def test_of_many_differences_each_is_told() -> None:
    wide = [tensor(f"feature_{number}", -1) for number in range(40)]
    assert len(differences(model(*wide), model(*wide[:10]))) == 30
