"""What the kernels need to know of a processor: vector lanes, registers, the 8-bit dot product."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..decisions import choose
from ..ternary import Packing
from ..tir import Expr, bind, splat
from .ternary import digits

_MANY_TILES = (
    (6, 4), (4, 4), (4, 5), (4, 6), (5, 5), (3, 8), (7, 3), (8, 3), (9, 3), (10, 2), (12, 2),
    (14, 2),
)  # fmt: skip
_FEW_TILES = ((6, 2), (4, 2), (5, 2), (7, 2), (3, 3), (4, 3), (2, 4), (3, 4))
"""Register tiles of an outer product, for 32 registers and for 16."""
_MANY_DOT_TILES = ((4, 6), (4, 4), (4, 5), (5, 5), (6, 4), (8, 3), (2, 8), (3, 8), (2, 4))
_FEW_DOT_TILES = ((3, 4), (2, 4), (3, 3), (4, 3), (2, 5), (2, 6))
"""The same of dot products, where both operands are vectors."""


class Isa:
    """The instruction set of a target.

    Attributes
    ----------
    lanes : int
        32-bit lanes of a vector: 16, 8 or 4.
    tile : tuple of int
        Height and width, in vectors, of the largest register tile of an outer product.
    dot_tile : tuple of int
        The same for a tile of dot products, where both operands are vectors.
    tiles, dot_tiles : tuple of tuple of int
        Others of about that size: which is fastest depends on the kernel and the processor.
    native_half : bool
        Whether the processor converts float16.
    dot : DotProduct
        How it multiplies 8-bit activations with ternary codes.
    """

    def __init__(self, target: Target) -> None:
        features = target.features
        self.lanes = target.vector_bytes // 4
        many = bool(features & {"avx512", "avx512_vnni", "neon_dot"})
        # 32 registers hold 24 accumulators and the operands, 16 hold 12.
        self.tile = (6, 4) if many else (6, 2)
        self.tiles = _MANY_TILES if many else _FEW_TILES
        self.dot_tile = (4, 6) if many else (3, 4)
        self.dot_tiles = _MANY_DOT_TILES if many else _FEW_DOT_TILES
        self.native_half = bool(features & {"avx2", "avx512", "neon_dot"})
        self.dot: DotProduct
        if "avx512_vnni" in features and self.lanes == 16:
            self.dot = Vnni(self.lanes)
        elif "avx2" in features and self.lanes == 8:
            self.dot = MultiplyAddBytes(self.lanes)
        elif "neon_dot" in features and self.lanes == 4:
            self.dot = NeonDot(self.lanes)
        else:
            self.dot = DotProduct(self.lanes)


def vector_lanes(target: Target) -> int:
    """Return the lanes at once of a kernel that works element by element; a decision.

    More than a register has are several registers, so that more loads are under way.
    """
    lanes = Isa(target).lanes
    return choose("vector", (lanes, 2 * lanes, 4 * lanes), lanes)


class DotProduct:
    """Products of activations with the codes 0, 1, 2 of ternary weights, rows as lanes.

    The columns of a packed word are taken in steps of `columns`; the operand of a step holds these
    columns of one row in each lane. This class is the portable one: float32 lanes with the values
    of integers, one column a step. Its sums stay below 2^24, so exact, as long as a row has fewer
    than 65536 columns.

    Attributes
    ----------
    dtype : str
        Of the lanes of an operand and of the words in which activations are stored.
    sum_dtype : str
        Of the accumulators.
    columns : int
        Columns of a step, and activations of a stored word.
    group : int
        Steps to accumulate at once.
    widens : bool
        Whether a group of steps takes fewer instructions than its steps one by one.
    unsigned : bool
        Whether the operands of codes may be any unsigned bytes, their products summed in 32 bits.
    tile : tuple of int
        Height and width of the largest register tile that leaves room for a group's operands.
    tiles : tuple of tuple of int
        Others of about that size.
    """

    dtype, sum_dtype, columns, group = "float32", "float32", 1, 1
    widens = unsigned = False
    tile: tuple[int, int] = (4, 2)
    tiles: tuple[tuple[int, int], ...] = ((4, 2), (2, 2), (3, 2), (5, 2), (6, 2), (3, 3), (2, 4))

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes

    def codes(self, words: Expr, packing: Packing) -> list[Expr]:
        """Return the operands of all steps of the int32 words of `lanes` rows."""
        found = []
        for digit in digits(words, packing):
            for byte in range(4):
                shifted = digit >> self._constant(8 * byte) if byte else digit
                code = shifted & self._constant(3)
                found.append(bind(T.cast(code, f"float32x{self.lanes}")))
        return found

    def activations(self, quantised: Expr) -> Expr:
        """Return the stored words of adjacent activations, given as int32 lanes."""
        return T.cast(quantised, f"float32x{self.lanes}")

    def accumulate(self, total: Expr, codes: Sequence[Expr], words: Sequence[Expr]) -> Expr:
        """Return `total` plus the products of some steps' operands with their splat words."""
        for code, word in zip(codes, words, strict=True):
            total = total + code * splat(word, self.lanes)
        return total

    def _constant(self, number: int) -> Expr:
        return splat(tirx.const(number, "int32"), self.lanes)


class _ByteDotProduct(DotProduct):
    """Four columns a step: the bytes of a 32-bit lane."""

    dtype, sum_dtype, columns, group = "int32", "int32", 4, 4
    tile = (6, 4)
    tiles: tuple[tuple[int, int], ...] = _MANY_TILES

    def codes(self, words: Expr, packing: Packing) -> list[Expr]:
        return digits(words, packing)

    def activations(self, quantised: Expr) -> Expr:
        lanes, words = self.lanes, self.lanes // 4
        packed = T.cast(quantised, f"int8x{lanes}")
        return T.reinterpret("int32" if words == 1 else f"int32x{words}", packed)

    def accumulate(self, total: Expr, codes: Sequence[Expr], words: Sequence[Expr]) -> Expr:
        for code, word in zip(codes, words, strict=True):
            total = self._multiply(total, self._bytes(code), self._bytes(splat(word, self.lanes)))
        return total

    def _bytes(self, value: Expr) -> Expr:
        return T.reinterpret(f"int8x{4 * self.lanes}", value)

    def _multiply(self, total: Expr, code: Expr, word: Expr) -> Expr:
        raise NotImplementedError


class Vnni(_ByteDotProduct):
    """AVX-512 VNNI: unsigned codes by signed activations, four products added to each lane."""

    unsigned = True

    def _multiply(self, total: Expr, code: Expr, word: Expr) -> Expr:
        return T.call_llvm_pure_intrin(
            "int32x16", "llvm.x86.avx512.vpdpbusd.512", total, code, word
        )


class NeonDot(_ByteDotProduct):
    """Arm's signed dot product, four products added to each lane."""

    def _multiply(self, total: Expr, code: Expr, word: Expr) -> Expr:
        return T.call_llvm_pure_intrin(
            "int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", total, code, word
        )


class MultiplyAddBytes(_ByteDotProduct):
    """AVX2: byte products added in pairs to 16 bits, the pairs of all steps added, then widened.

    A 16-bit lane holds two products of at most 2 * 128 for each of at most four steps.
    """

    tile, tiles, widens = DotProduct.tile, DotProduct.tiles, True

    def accumulate(self, total: Expr, codes: Sequence[Expr], words: Sequence[Expr]) -> Expr:
        """Return `total` plus the products of at most four steps."""
        pairs: Expr = None
        for code, word in zip(codes, words, strict=True):
            product = T.call_llvm_pure_intrin(
                "int16x16",
                "llvm.x86.avx2.pmadd.ub.sw",
                self._bytes(code),
                self._bytes(splat(word, self.lanes)),
            )
            pairs = product if pairs is None else pairs + product
        ones = T.broadcast(tirx.const(1, "int16"), 16)
        return total + T.call_llvm_pure_intrin(
            "int32x8", "llvm.x86.avx2.pmadd.wd", bind(pairs), ones
        )
