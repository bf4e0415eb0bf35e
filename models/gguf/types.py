"""The numbers of the GGUF format: value types, tensor types and the bytes of their blocks."""

from __future__ import annotations

from dataclasses import dataclass

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32

# How a value type of the metadata is stored; strings and arrays have a length of their own.
SCALARS = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
STRING = 8
ARRAY = 9
UINT32, INT32, FLOAT32, BOOL = 4, 5, 6, 7

I2_S_TAIL = 32
"""Bytes after an I2_S tensor's codes; the first four are its scale, float32."""


@dataclass(frozen=True)
class TensorType:
    """One tensor type: a row is cut into blocks of `values` numbers, stored in `size` bytes."""

    name: str
    values: int
    size: int


TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    8: TensorType("Q8_0", 32, 34),
    14: TensorType("Q6_K", 256, 210),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    # Of bitnet.cpp: not in rows, but one run of codes and a tail; see `I2_S_TAIL`.
    36: TensorType("I2_S", 4, 1),
}
TYPE_IDS = {kind.name: number for number, kind in TENSOR_TYPES.items()}

# Names for those that are refused, so that the refusal can say what a tensor is.
OTHER_TYPES = {
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    37: "TL1 or a repacked Q4_0",
    38: "TL1 or TL2",
    39: "TL2 or MXFP4",
    134: "IQ1_BN",
    135: "IQ2_BN",
}


def type_name(number: int) -> str:
    """Give the name of a tensor type, known to the format or not."""
    if number in TENSOR_TYPES:
        return TENSOR_TYPES[number].name
    return OTHER_TYPES.get(number, f"type {number}")
