"""The curve of a training as an event file, which TensorBoard reads.

Such a file is a series of records (TFRecord), each with checksums of its length and of its content; a record is an `Event` of Protocol
Buffers: https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from fettle.api.report import TrainingEpoch, TrainingFigures

LARGEST = 3.4e38  # number that an event holds
NAME = "events.out.tfevents.0.fettle"  # TensorBoard reads files whose name contains `tfevents`
VERSION = b"brain.Event:2"
CASTAGNOLI, MASK = 0x82F63B78, 0xA282EAD8  # the polynomial of CRC-32C, reversed; what TFRecord adds to a checksum
# Numbers and types of the fields, as they stand in front of them: Event, Summary, Summary.Value.
WALL_TIME, STEP, FILE_VERSION, SUMMARY = b"\x09", b"\x10", b"\x1a", b"\x2a"
VALUE, TAG, SIMPLE_VALUE = b"\x0a", b"\x0a", b"\x15"


def events(figures: TrainingFigures, ended: float) -> bytes:
    """Losses, score and learning rate by epoch; `ended` is when the training did, in seconds since 1970."""
    begun = ended - figures.seconds
    records = [_event(begun, 0, FILE_VERSION + _sized(VERSION))]
    for row in figures.curve:
        at = begun + figures.seconds * row.epoch / max(figures.epochs, 1)
        records.append(_event(at, row.epoch, SUMMARY + _sized(b"".join(map(_value, _scalars(row).items())))))
    return b"".join(map(_record, records))


def _scalars(row: TrainingEpoch) -> Mapping[str, float]:
    """What is known of an epoch, by the name of its plot."""
    told = {
        "score/validation": row.score,
        "loss/training": row.loss,
        "loss/validation": row.held_out_loss,
        "learning_rate": row.learning_rate,
    }
    return {tag: value for tag, value in told.items() if value is not None}


def _event(at: float, step: int, what: bytes) -> bytes:
    known = STEP + _varint(step) if step else b""  # 0 is what is not written
    return WALL_TIME + struct.pack("<d", at) + known + what


def _value(scalar: tuple[str, float]) -> bytes:
    tag, value = scalar
    return VALUE + _sized(
        TAG + _sized(tag.encode()) + SIMPLE_VALUE + struct.pack("<f", min(max(value, -LARGEST), LARGEST))
    )


def _sized(content: bytes) -> bytes:
    return _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + checksum(length) + content + checksum(content)


def checksum(content: bytes) -> bytes:
    """CRC-32C, masked as TFRecord does it: a checksum of bytes that hold checksums would be a weak one."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (CASTAGNOLI if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + MASK) & 0xFFFFFFFF)
