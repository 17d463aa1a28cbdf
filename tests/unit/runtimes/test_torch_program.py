"""Programs of torch.export that would run code when PyTorch loads them: refused with the field that holds it, and not a line of it run."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fettle.api.reasons import Reason
from fettle.errors import RuntimeFailure
from fettle.runtimes.torch_archive import Contents, contents
from fettle.runtimes.torchscript import open_program

MODEL, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS = "data/weights/model_weights_config.json"


class Reshaped(nn.Module):
    """Arithmetic on sizes, inputs by name, texts among the arguments of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(
        self, x: dict[str, torch.Tensor], *, other: torch.Tensor, mode: str = "two-d"
    ) -> dict[str, torch.Tensor]:
        made = nn.functional.gelu(self.layer(x["a a"]), approximate="tanh") + torch.einsum("ij, jk -> ik", other, other)
        return {"made": made.reshape(made.shape[0] * 2, -1)}


class Deciding(nn.Module):
    """Sizes that data decides, with their assertions, a branch, and guards with functions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wider = nn.functional.interpolate(x, scale_factor=1.5)
        chosen = torch.cond(x.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (wider,))
        kept = torch.nonzero(chosen.flatten()[: x.shape[2] // 2 + int(x.shape[0] ** 0.5)] > 0)
        return kept.float() * max(x.shape[0], 3)


class Mapped(nn.Module):
    """What a transformation of functions leaves in a program."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.vmap(lambda row: row.sum() * 2)(x)


class Square(nn.Module):
    """With one of each field that is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(
        self, x: dict[str, torch.Tensor], *, other: torch.Tensor, mode: str = "two-d"
    ) -> dict[str, torch.Tensor]:
        return {"made": self.layer(x["a a"]).reshape(x["a a"].shape[0] * 2, -1), "other": other @ other}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("programs") / "good.pt2"
    rows = torch.export.Dim("rows", min=2, max=64)
    shapes = {"x": {"a a": {0: rows}}, "other": {0: rows, 1: rows}, "mode": None}
    given = {"other": torch.ones(6, 6), "mode": "two-d"}
    torch.export.save(torch.export.export(Square(), ({"a a": torch.ones(6, 6)},), given, dynamic_shapes=shapes), path)
    return path


def changed(path: Path, target: Path, record: str, change: Callable[[bytes], bytes]) -> Path:
    """The archive at `path` with another content of one of its records."""
    found = False
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as written:
        for name in archive.namelist():
            own = name.endswith(record)
            found |= own
            written.writestr(name, change(archive.read(name)) if own else archive.read(name))
    assert found
    return target


def fields(document: Any, key: str) -> Iterator[dict[str, Any]]:
    """The objects of a document that have the field."""
    if isinstance(document, dict):
        if key in document:
            yield document
        document = list(document.values())
    if isinstance(document, list):
        for inner in document:
            yield from fields(inner, key)


def code(canary: Path) -> str:
    return f"__import__('os').mkdir('{canary}')"


def setting(key: str, value: Any) -> Callable[[bytes], bytes]:
    """A function that gives every field of that name the value."""

    def change(content: bytes) -> bytes:
        document = json.loads(content)
        found = list(fields(document, key))
        assert found
        for owner in found:
            owner[key] = value
        return json.dumps(document).encode()

    return change


def refused(path: Path, *said: str) -> None:
    with pytest.raises(RuntimeFailure) as raised:
        open_program(path)
    assert raised.value.reason == Reason.UNSAFE_CODE, raised.value.message
    assert all(text in raised.value.message for text in (path.name, "so it was not loaded", *said)), (
        raised.value.message
    )


@pytest.mark.parametrize(
    ("module", "inputs"),
    [(Deciding(), torch.ones(4, 3, 8)), (Mapped(), torch.ones(3, 4))],
    ids=["deciding", "mapped"],
)
def test_what_torch_export_writes_itself_is_loaded(module: nn.Module, inputs: torch.Tensor, tmp_path: Path) -> None:
    free = dict.fromkeys((0, inputs.ndim - 1), torch.export.Dim.AUTO)
    torch.export.save(torch.export.export(module, (inputs,), dynamic_shapes=(free,)), tmp_path / "model.pt2")
    answer = open_program(tmp_path / "model.pt2").call([inputs])
    torch.testing.assert_close(answer, module(inputs))


def test_inputs_by_name_and_texts_are_loaded(tmp_path: Path) -> None:
    module, x, other = Reshaped().eval(), {"a a": torch.ones(6, 6)}, torch.rand(6, 6)
    torch.export.save(torch.export.export(module, (x,), {"other": other, "mode": "two-d"}), tmp_path / "model.pt2")
    answer = open_program(tmp_path / "model.pt2").call([x["a a"], other])
    torch.testing.assert_close(answer["made"], module(x, other=other)["made"])


TREE = {"type": "builtins.dict", "context": "{}", "children_spec": []}
FIELDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "an expression": ("expr_str", lambda code: code),
    "an expression within one": ("expr_str", lambda code: f"Max(Integer(1), {code})"),
    "an expression in a string": ("expr_str", lambda code: f'Max("{code}")'),
    "an attribute in an expression": ("expr_str", lambda code: "Symbol('s0').func.mro"),
    "a guard": ("guards_code", lambda code: [f"{code} is None"]),
    "a guard that ends its string": ("guards_code", lambda code: [f"""L['x", {code}, "']"""]),
    "an attribute in a guard": ("guards_code", lambda code: ["L['x'].numpy.__globals__ is None"]),
    "the name of a node": ("name", lambda code: f"x = {code}; y"),
    "an operator of no library": ("target", lambda code: "torch.hub.load"),
    "an operator out of PyTorch": ("target", lambda code: "torch.os.system"),
    "an operator that opens files": ("target", lambda code: "torch.ops.aten.from_file.default"),
    "a function that makes functions": ("target", lambda code: "_operator.methodcaller"),
    "a text among the inputs": ("inputs", lambda code: [{"as_string": f"x' or {code} or '"}]),
    "a name in the tree of inputs": ("in_spec", lambda code: json.dumps([1, {**TREE, "context": json.dumps([code])}])),
    "a module in the tree of inputs": (
        "in_spec",
        lambda code: json.dumps([1, {**TREE, "context": '{"__enum__": true, "fqn": "antigravity:X", "name": "x"}'}]),
    ),
}


@pytest.mark.parametrize("case", FIELDS)
def test_code_in_a_program_is_refused_with_its_field_and_never_run(case: str, program: Path, tmp_path: Path) -> None:
    key, make = FIELDS[case]
    canary = tmp_path / "canary"
    evil = changed(program, tmp_path / "evil.pt2", MODEL, setting(key, make(code(canary))))
    refused(evil)
    assert not canary.exists()


def test_the_message_names_the_field_and_what_is_in_it(program: Path, tmp_path: Path) -> None:
    refused(changed(program, tmp_path / "evil.pt2", MODEL, setting("expr_str", "exit(1)")), "'exit(1)' in expr_str")


class Touch:
    """Unpickling one creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def test_pickles_in_a_program_are_refused(program: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    samples = changed(program, tmp_path / "samples.pt2", SAMPLES, lambda _: saved(((Touch(canary),), {})))
    refused(samples, SAMPLES, "a pickle of more than tensors")
    refused(changed(program, tmp_path / "weights.pt2", WEIGHTS, setting("use_pickle", True)), "a pickle (weight_")
    opaque = changed(program, tmp_path / "opaque.pt2", WEIGHTS, setting("path_name", "opaque_obj_0"))
    refused(opaque, "a pickle (opaque_obj_0)")
    assert not canary.exists()


def test_a_name_among_the_sample_inputs_that_would_end_a_string_is_refused(program: Path, tmp_path: Path) -> None:
    name = f"""'", {code(tmp_path / "canary")}, \""""
    refused(changed(program, tmp_path / "evil.pt2", SAMPLES, lambda _: saved((({name: torch.ones(2)},), {}))), SAMPLES)
    assert not (tmp_path / "canary").exists()


def test_an_archive_of_a_version_before_2_8_is_judged_as_well(program: Path, tmp_path: Path) -> None:
    canary, old = tmp_path / "canary", tmp_path / "old.pt2"
    with zipfile.ZipFile(program) as archive:
        graph = next(archive.read(name) for name in archive.namelist() if name.endswith(MODEL))
    with zipfile.ZipFile(old, "w") as written:
        written.writestr("version", "8.0")
        written.writestr("serialized_exported_program.json", setting("expr_str", code(canary))(graph))
    refused(old, "in expr_str")
    with zipfile.ZipFile(old, "w") as written:
        written.writestr("serialized_exported_program.json", graph)
        written.writestr("serialized_constants.pt", saved(Touch(canary)))
    refused(old, "serialized_constants.pt")
    assert not canary.exists()


def test_machine_code_that_only_pytorch_sees_in_an_archive_is_refused(program: Path, tmp_path: Path) -> None:
    """The two tables of contents of a zip archive: Python starts from the end that the last record tells, PyTorch from where it stands."""
    path = tmp_path / "two.pt2"
    with zipfile.ZipFile(program) as archive, zipfile.ZipFile(path, "w") as written:
        for name in archive.namelist():
            written.writestr(name, archive.read(name))
        written.writestr(f"{name.partition('/')[0]}/data/aotinductor/model/x.so", b"no machine code")
    assert contents(path) == Contents.COMPILED
    raw = path.read_bytes()
    end = raw.rfind(b"PK\x05\x06")
    size, start = struct.unpack("<II", raw[end + 12 : end + 20])
    table = raw[start : start + size].replace(b"aotinductor", b"harmlessdir")
    path.write_bytes(raw[:end] + table + raw[end:])
    assert contents(path) == Contents.EXPORT, "Python's own reader sees no machine code"
    refused(path, "machine code in data/aotinductor/model/x.so")
