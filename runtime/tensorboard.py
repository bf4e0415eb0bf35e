"""TensorBoard event files, written without TensorBoard.

An event file is a list of records: the length (uint64), a checksum of it, the bytes, a checksum of
them (little-endian; CRC-32C, rotated right by 15 bits, plus 0xa282ead8: TensorFlow's
`record_writer`). The bytes are an `Event` protocol buffer, of which scalars need five fields.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from .files import write_error

_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _crc_table()


class EventFile:
    """One run's scalars for TensorBoard.

    Parameters
    ----------
    folder : Path
        The log folder, made where it is missing.
    purge_from : int
        Step from which TensorBoard forgets what earlier files of this folder say: a resumed run
        computes those steps again, a new one all of them.

    Raises
    ------
    FileError
        Where the folder cannot be written.
    """

    def __init__(self, folder: Path, purge_from: int = 0) -> None:
        now = time.time()
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "wb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise write_error(folder, error) from error
        self._event(_field(3, _BYTES, b"brain.Event:2"))
        started = _field(1, _VARINT, 1)
        self._event(_field(2, _VARINT, purge_from) + _field(7, _BYTES, started))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the scalars of one step, each under its tag.

        Raises
        ------
        FileError
            Where the disk is full.
        """
        values = b"".join(
            _field(1, _BYTES, _field(1, _BYTES, tag.encode()) + _field(2, _FIXED32, value))
            for tag, value in scalars.items()
        )
        self._event(_field(2, _VARINT, step) + _field(5, _BYTES, values))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _event(self, fields: bytes) -> None:
        data = _field(1, _FIXED64, time.time()) + fields
        length = struct.pack("<Q", len(data))
        record = length + _masked_crc(length) + data + _masked_crc(data)
        try:
            while record:
                record = record[self._file.write(record) :]
        except OSError as error:
            raise write_error(self._path, error) from error


def _field(number: int, kind: int, value: float | bytes) -> bytes:
    """Encode one protocol-buffer field."""
    key = _varint(number << 3 | kind)
    if isinstance(value, bytes):
        return key + _varint(len(value)) + value
    if kind == _VARINT:
        return key + _varint(int(value))
    return key + struct.pack("<d" if kind == _FIXED64 else "<f", value)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + _MASK_DELTA) & 0xFFFFFFFF)
