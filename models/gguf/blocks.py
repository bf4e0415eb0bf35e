"""The blocks of GGUF tensors: ternary ones both ways, the common ones for tables to floats.

Layouts, with ``digit = code + 1``:

- TQ2_0, 256 codes in 66 bytes: value ``i`` in byte ``32 (i / 128) + i % 32`` at bit
  ``2 ((i % 128) / 32)``, then the scale, float16.
- TQ1_0, 256 codes in 54 bytes: five digits a byte, the first one most significant, as the fraction
  ``ceil(v 256 / 243)``; values 0 to 159 in bytes 0 to 31, 160 to 239 in bytes 32 to 47, and 240 to
  255 by fours in bytes 48 to 51, then the scale, float16.
- I2_S, the codes of the whole tensor in one run: on x86 128 codes in 32 bytes, code ``j`` in byte
  ``j % 32`` at bit ``6 - 2 (j / 32)``; on ARM 64 codes in 16 bytes, byte ``j % 16``, bit
  ``6 - 2 (j / 16)``. Then 32 bytes, of which the first four are the scale, float32.

Source: ggml's block definitions and bitnet.cpp's ``quantize_i2_s``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LAYOUTS = {"x86": 32, "arm": 16}
"""I2_S's layouts by name: the bytes of a group, each of which holds four codes."""

Codes = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]

_POWERS = np.array([81, 27, 9, 3, 1], np.uint16)


def _tq1_order() -> npt.NDArray[np.intp]:
    """Give for each of the 256 values its place among the 52 bytes of five digits, [256]."""
    value = np.arange(256)
    byte = np.where(value < 160, value % 32, np.where(value < 240, 32 + value % 16, 48 + value % 4))
    digit = np.where(
        value < 160, value // 32, np.where(value < 240, (value - 160) // 16, (value - 240) // 4)
    )
    return byte * 5 + digit


_TQ1_ORDER = _tq1_order()


def _tq1_digits() -> npt.NDArray[np.int8]:
    """Give the codes of every byte, [256, 5]: each digit is read off the top of the fraction."""
    byte = np.arange(256, dtype=np.uint16)[:, None]
    fraction = byte * _POWERS[::-1] & 0xFF
    return ((fraction * 3 >> 8).astype(np.int8)) - np.int8(1)


_TQ1_CODES = _tq1_digits()


def unpack_tq1_0(data: Bytes) -> tuple[Codes, npt.NDArray[np.float16]]:
    """Unpack TQ1_0 blocks, uint8 [blocks * 54], to codes [blocks, 256] and scales [blocks]."""
    blocks = data.reshape(-1, 54)
    codes = _TQ1_CODES[blocks[:, :52]].reshape(len(blocks), -1)[:, _TQ1_ORDER]
    return codes, _scales(blocks[:, 52:])


def pack_tq1_0(codes: Codes, scale: float) -> Bytes:
    """Pack codes, int8 [n] with n a multiple of 256, as TQ1_0 with one scale: uint8 [n / 256 * 54].

    The scale is rounded to float16.
    """
    digits = np.zeros((codes.size // 256, 52 * 5), np.uint16)
    digits[:, _TQ1_ORDER] = codes.reshape(-1, 256) + 1
    numbers = digits.reshape(-1, 52, 5) @ _POWERS
    fractions = (numbers.astype(np.uint32) * 256 + 242) // 243
    return _with_scale(fractions.astype(np.uint8), scale)


def unpack_tq2_0(data: Bytes) -> tuple[Codes, npt.NDArray[np.float16]]:
    """Unpack TQ2_0 blocks, uint8 [blocks * 66], to codes [blocks, 256] and scales [blocks].

    The bits 11 become the code 2, which is none.
    """
    blocks = data.reshape(-1, 66)
    halves = blocks[:, :64].reshape(-1, 2, 32)
    codes = np.empty((len(blocks), 2, 4, 32), np.int8)
    for field in range(4):
        np.subtract(halves >> 2 * field & 3, 1, out=codes[:, :, field], casting="unsafe")
    return codes.reshape(-1, 256), _scales(blocks[:, 64:])


def pack_tq2_0(codes: Codes, scale: float) -> Bytes:
    """Pack codes, int8 [n] with n a multiple of 256, as TQ2_0 with one scale: uint8 [n / 256 * 66].

    The scale is rounded to float16.
    """
    fields = (codes.reshape(-1, 2, 4, 32) + 1).astype(np.uint8)
    folded = fields[:, :, 0] | fields[:, :, 1] << 2 | fields[:, :, 2] << 4 | fields[:, :, 3] << 6
    return _with_scale(folded.reshape(-1, 64).astype(np.uint8, copy=False), scale)


def unpack_i2_s(data: Bytes, group: int) -> Codes:
    """Unpack an I2_S run without its tail, uint8 [n / 4], to codes [n]; 11 becomes the code 2.

    `group` is a value of `LAYOUTS`; n is a multiple of four times it.
    """
    groups = data.reshape(-1, group)
    codes = np.empty((len(groups), 4, group), np.int8)
    for field in range(4):
        np.subtract(groups >> (6 - 2 * field) & 3, 1, out=codes[:, field], casting="unsafe")
    return codes.reshape(-1)


def pack_i2_s(codes: Codes, scale: float, group: int) -> Bytes:
    """Pack codes, int8 [n], as I2_S with its tail, uint8 [n / 4 + 32]."""
    fields = (codes.reshape(-1, 4, group) + 1).astype(np.uint8)
    folded = fields[:, 0] << 6 | fields[:, 1] << 4 | fields[:, 2] << 2 | fields[:, 3]
    tail = np.zeros(8, "<f4")
    tail[0] = scale
    return np.concatenate([folded.reshape(-1), tail.view(np.uint8)])


def dequantize_q8_0(data: Bytes) -> npt.NDArray[np.float32]:
    """Give the numbers of Q8_0 blocks (a float16 scale and 32 int8), float32 [blocks * 32]."""
    blocks = data.reshape(-1, 34)
    values = blocks[:, 2:].view(np.int8).astype(np.float32)
    return (values * _scales(blocks[:, :2]).astype(np.float32)[:, None]).reshape(-1)


def dequantize_q6_k(data: Bytes) -> npt.NDArray[np.float32]:
    """Give the numbers of Q6_K blocks, float32 [blocks * 256].

    A block is 128 bytes of low halves, 64 of upper bit pairs, 16 int8 scales of 16 numbers each,
    and one float16 factor; a number is its six bits less 32.
    """
    blocks = data.reshape(-1, 210)
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([[0], [4]], np.uint8) & 0x0F
    shifts = np.array([[0], [2], [4], [6]], np.uint8)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 0x03
    values = (low.reshape(-1, 8, 32) | high.reshape(-1, 8, 32) << 4).astype(np.int8) - np.int8(32)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    factors = scales * _scales(blocks[:, 208:]).astype(np.float32)[:, None]
    return (values.reshape(-1, 16, 16) * factors[:, :, None]).astype(np.float32).reshape(-1)


def _scales(data: Bytes) -> npt.NDArray[np.float16]:
    return np.ascontiguousarray(data).view("<f2").reshape(-1)


def _with_scale(blocks: Bytes, scale: float) -> Bytes:
    """Append the scale as float16 to every block and give all bytes in one run."""
    ends = np.full((len(blocks), 1), scale, "<f2").view(np.uint8)
    return np.concatenate([blocks, ends], axis=1).reshape(-1)
