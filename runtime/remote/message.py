"""What travels between this machine and a device: JSON values and arrays, in one row of bytes.

A message is the length of its header (8 bytes, little endian), the header, and the bytes of every
array in the header's order. The header is JSON: ``values``, and ``arrays`` as a list of name,
dtype and shape. There is no pickle: a message can hold nothing but numbers and text.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

PIECE = 1 << 20
"""Bytes that go through TVM's RPC at once: it holds each piece in memory on both sides."""
_LENGTH = struct.Struct("<Q")
_DTYPES = ("float32", "int32", "uint8")

Values = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]


def pack(values: Values, arrays: Arrays | None = None) -> bytes:
    """Return a message.

    Parameters
    ----------
    values : mapping
        What JSON can hold; floats, NaN and infinity among them, arrive bit for bit.
    arrays : mapping of str to numpy.ndarray, optional
        float32, int32 or uint8 of any shape.

    Raises
    ------
    TypeError
        For an array of another dtype.
    """
    laid = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
    for name, array in laid.items():
        if str(array.dtype) not in _DTYPES:
            raise TypeError(f"{name} is {array.dtype}; a message holds {', '.join(_DTYPES)}")
    described = [[name, str(array.dtype), array.shape] for name, array in laid.items()]
    header = json.dumps({"values": dict(values), "arrays": described}).encode()
    return b"".join([_LENGTH.pack(len(header)), header, *(a.tobytes() for a in laid.values())])


def unpack(message: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the values and the arrays of a message; the arrays are the caller's own to write to.

    Raises
    ------
    ValueError
        If it is no message.
    """
    try:
        (size,) = _LENGTH.unpack_from(message)
        begin = _LENGTH.size + size
        header = json.loads(message[_LENGTH.size : begin])
        arrays = {}
        for name, dtype, shape in header["arrays"]:
            if dtype not in _DTYPES:
                raise ValueError(f"{name} is {dtype}")
            count = math.prod(shape)
            array = np.frombuffer(message, dtype, count, begin)
            arrays[name] = array.reshape(shape).copy()
            begin += array.nbytes
        return header["values"], arrays
    except (struct.error, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a message: {error!r}") from error
