"""Curves as TensorBoard's event files: what was written is read again with Protocol Buffers' own library."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tests.unit.optimizer.report.run_of_digits import fill, open_store
from tests.unit.optimizer.report.test_report import published
from tests.unit.optimizer.report.test_training_plots import ENDS, trained, with_training

from fettle.optimizer.report.tensorboard import checksum, events

KINDS = descriptor_pb2.FieldDescriptorProto
FIELDS: dict[str, list[tuple[str, int, int]]] = {  # of tensorboard/compat/proto: name, number and type
    "Event": [
        ("wall_time", 1, KINDS.TYPE_DOUBLE),
        ("step", 2, KINDS.TYPE_INT64),
        ("file_version", 3, KINDS.TYPE_STRING),
        ("summary", 5, KINDS.TYPE_MESSAGE),
    ],
    "Summary": [("value", 1, KINDS.TYPE_MESSAGE)],
    "Value": [("tag", 1, KINDS.TYPE_STRING), ("simple_value", 2, KINDS.TYPE_FLOAT)],
}
INNER = {"summary": ".events.Summary", "value": ".events.Value"}


def event_class() -> Any:
    """The class of an Event's messages."""
    file = descriptor_pb2.FileDescriptorProto(name="events.proto", package="events", syntax="proto3")
    for message, fields in FIELDS.items():
        made = file.message_type.add(name=message)
        for name, number, kind in fields:
            label = KINDS.LABEL_REPEATED if name == "value" else KINDS.LABEL_OPTIONAL
            named = {"type_name": INNER[name]} if name in INNER else {}
            made.field.add(name=name, number=number, type=kind, label=label, **named)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("events.Event"))


def records(content: bytes) -> Iterator[bytes]:
    """What the records of a file hold; their checksums are not looked at."""
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        yield content[12 : 12 + size]
        content = content[16 + size :]


def read(content: bytes) -> list[Any]:
    """The events of a file."""
    return [event_class().FromString(record) for record in records(content)]


def test_an_event_file_has_the_curve_of_each_figure() -> None:
    figures = trained(ENDS[0])
    first, *told = read(events(figures, ended=1_000_008.0))
    assert (first.file_version, first.wall_time) == ("brain.Event:2", 1_000_000.0)
    assert [(event.step, event.wall_time) for event in told] == [(epoch, 1_000_000.0 + 2 * epoch) for epoch in range(5)]
    curves: dict[str, dict[int, float]] = {}
    for event in told:
        for value in event.summary.value:
            curves.setdefault(value.tag, {})[event.step] = value.simple_value
    assert curves["score/validation"] == pytest.approx({row.epoch: row.score for row in figures.curve})
    assert curves["loss/validation"] == pytest.approx({row.epoch: row.held_out_loss for row in figures.curve})
    assert curves["loss/training"] == pytest.approx({row.epoch: row.loss for row in figures.curve[1:]})
    assert curves["learning_rate"] == pytest.approx({row.epoch: row.learning_rate for row in figures.curve[1:]})


def test_records_carry_the_checksums_that_readers_look_at() -> None:
    """The first record of every event file has these twelve bytes in front: 24 bytes long, and the checksum of that."""
    content = events(trained(ENDS[0]), ended=8.0)
    assert content[:12] == bytes.fromhex("1800000000000000a37f4b22")
    # CRC-32C of a content that reads "123456789" is 0xe3069283 (RFC 3720's polynomial), masked as TFRecord does.
    assert checksum(b"123456789") == struct.pack("<I", 0xC78AB0E5)


def test_event_files_lie_beside_the_report_of_a_run_that_trained(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    fill(store, tmp_path / "model")
    published(store)
    assert store.names("reports/vision/digits") == ["3.html"]
    with_training(store, ENDS[1])
    published(store)
    assert store.names("reports/vision/digits") == ["3.html", "3.tensorboard"]
    (name,) = store.names("reports/vision/digits/3.tensorboard/lean-torchscript")
    assert "tfevents" in name
    content = store.read_bytes(f"reports/vision/digits/3.tensorboard/lean-torchscript/{name}")
    assert [event.step for event in read(content)] == [0, 0, 1, 2, 3, 4]
