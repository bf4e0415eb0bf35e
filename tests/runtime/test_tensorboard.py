"""Event files are what TensorBoard reads: checked by a reader of our own, from the formats."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bitfabric.runtime.tensorboard import EventFile


def crc32c(data: bytes) -> int:
    """CRC-32C bit by bit, from its definition (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


def records(data: bytes) -> Iterator[bytes]:
    """The records of a TFRecord file; every checksum must be right."""

    def check(part: bytes, stored: bytes) -> None:
        crc = crc32c(part)
        rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
        assert struct.unpack("<I", stored)[0] == (rotated + 0xA282EAD8) & 0xFFFFFFFF

    while data:
        length = struct.unpack("<Q", data[:8])[0]
        check(data[:8], data[8:12])
        check(data[12 : 12 + length], data[12 + length : 16 + length])
        yield data[12 : 12 + length]
        data = data[16 + length :]


def fields(message: bytes) -> dict[int, list[Any]]:
    """The fields of a protocol buffer, nested ones as bytes."""
    found: dict[int, list[Any]] = {}
    while message:
        key, message = varint(message)
        if key & 7 == 0:
            value, message = varint(message)
        elif key & 7 == 2:
            length, message = varint(message)
            value, message = message[:length], message[length:]
        else:
            size, form = {1: (8, "<d"), 5: (4, "<f")}[key & 7]
            value, message = struct.unpack(form, message[:size])[0], message[size:]
        found.setdefault(key >> 3, []).append(value)
    return found


def varint(data: bytes) -> tuple[int, bytes]:
    value = shift = 0
    for index, byte in enumerate(data):
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, data[index + 1 :]
    raise AssertionError("a varint without an end")


def read(folder: Path) -> list[dict[int, list[Any]]]:
    (path,) = folder.glob("events.out.tfevents.*")
    return [fields(record) for record in records(path.read_bytes())]


def test_the_checksum_is_the_published_one() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_scalars_are_written_with_their_steps(tmp_path: Path) -> None:
    events = EventFile(tmp_path / "logs")
    events.write(1, {"train/loss": 2.5, "train/lr": 1e-3})
    events.write(70_000, {"eval/loss": 1.25})
    events.close()
    version, _, first, second = read(tmp_path / "logs")
    assert version[3] == [b"brain.Event:2"]
    assert version[1][0] > 1.6e9
    assert (first[2], second[2]) == ([1], [70_000])
    values = [fields(value) for value in fields(first[5][0])[1]]
    assert [(value[1][0], value[2][0]) for value in values] == [
        (b"train/loss", 2.5),
        (b"train/lr", pytest.approx(1e-3)),
    ]


def test_a_resumed_run_tells_tensorboard_to_forget(tmp_path: Path) -> None:
    EventFile(tmp_path, purge_from=300).close()
    _, started = read(tmp_path)
    assert started[2] == [300]
    assert fields(started[7][0])[1] == [1]  # SessionLog.status == START
