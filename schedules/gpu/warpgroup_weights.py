"""Packed weights as the left factor of Hopper's products, unpacked in the registers.

A thread has four adjacent outputs of its warp's 32, ``4 g`` on of the two products of its tile: of
product i, the rows g and g + 8 are its outputs ``2 i`` and ``2 i + 1``.
"""

from __future__ import annotations

from typing import Protocol

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..ternary import TILE
from ..tir import Buffer, Expr, bind, shape
from .ternary_product import codes
from .vectors import LANES, fours, held, lane
from .warpgroup import bytes_of, line_place
from .warpgroup_tile import COLUMNS, PRODUCTS

GROUPS, CHUNKS = 2, 2
"""A step of 128 bytes is two groups of products, each of two products deep."""
ACROSS, DOWN = 8, 4
"""Tiles of 16 side by side in a step of 128 columns or outputs, and below each other in one of 64
rows."""
MAGIC = 0x64006400
"""The bits of 1024 as two 16-bit floats: with a code in the low bits each is 1024 + code."""
PAIRS = 0x00030003
"""The places of two codes in a word of two 16-bit floats."""


class Weights(Protocol):
    """The left factor of a work-group.

    Attributes
    ----------
    vectors : int
        Vectors of four words of a step, in memory.
    """

    vectors: int

    def source(self, step: Expr, index: Expr) -> tuple[Buffer, list[Expr]]:
        """Return the buffer of vectors, and the place in it, of one of a step's vectors."""

    def unpack(self, memory: Buffer, place: Expr, group: int) -> list[list[list[Expr]]]:
        """Return the four registers of each of a group's products, by depth, then by output.

        `memory` holds the step's vectors from `place` on. A team that has several groups of a step
        asks for them in their order.
        """


class _Outputs:
    """The outputs of a work-group, and the four adjacent ones of a thread.

    Parameters
    ----------
    packed : Buffer
        ``(N / 16, K / 16, 16)`` int32.
    first : PrimExpr
        The first output of the work-group.
    thread : PrimExpr
        The thread.
    end : int
        The number of outputs.
    """

    def __init__(self, packed: Buffer, first: Expr, thread: Expr, end: int) -> None:
        self.packed, self.first, self.end = fours(packed), first, end
        self.output = bind(thread // LANES * LANES)
        self.quarter = bind(thread % LANES)

    def tile(self, index: Expr) -> Expr:
        """Return a tile of 16 of the work-group's outputs, among all; past the end, the last."""
        own = self.first // TILE + index
        return tirx.min(own, self.end // TILE - 1) if self.end % COLUMNS else own


class TernaryBytes(_Outputs):
    """The codes as bytes: outputs are rows of the weights, the depth is their columns.

    A word of 16 columns is four of a product's bytes four times over, so that of 64 columns the
    product's bytes ``16 s + 4 q + c`` are columns ``16 q + 4 s + c``: `ordered` tells where the
    tokens' words go to meet them.
    """

    vectors = COLUMNS // TILE * ACROSS * LANES

    def __init__(self, packed: Buffer, first: Expr, thread: Expr) -> None:
        super().__init__(packed, first, thread, shape(packed)[0] * TILE)

    def source(self, step: Expr, index: Expr) -> tuple[Buffer, list[Expr]]:
        """Return the place of a vector of a step of 128 columns: those of a row lie together."""
        index = bind(_apart(index))
        column = step * ACROSS + index // LANES % ACROSS
        return self.packed, [self.tile(index // (LANES * ACROSS)), column, index % LANES]

    def unpack(self, memory: Buffer, place: Expr, group: int) -> list[list[list[Expr]]]:
        """Return the registers of 64 columns."""
        column = group * LANES + self.quarter
        row = self.output // TILE * ACROSS + column
        vector = bind(memory[place + _apart(row * LANES + self.output % TILE // LANES)])
        words = [codes(lane(vector, i)) for i in range(LANES)]
        return [
            [
                [words[2 * i + half][2 * chunk + late] for late in range(2) for half in range(2)]
                for i in range(PRODUCTS)
            ]
            for chunk in range(CHUNKS)
        ]


def _apart(vector: Expr) -> Expr:
    """Return the place of a step's vector in shared memory, or the vector of a place: eight threads
    that read together, two vectors of each of four columns, read from different banks."""
    return vector ^ (vector // 8 % 2 * 2)


def ordered(token: Expr, word: Expr, words: int) -> Expr:
    """Return the place of a token's word of four columns, one of so many, as `TernaryBytes` needs
    them: of each 64 columns in its order, and then as :func:`line_place` has them."""
    column = word // 16 * 16 + word % LANES * LANES + word // LANES % LANES
    return line_place(token, column, words)


class TernaryHalves(_Outputs):
    """The weights as 16-bit floats: outputs are columns of the weights, the depth is their rows."""

    vectors = DOWN * ACROSS * LANES

    def __init__(self, packed: Buffer, first: Expr, thread: Expr) -> None:
        super().__init__(packed, first, thread, shape(packed)[1] * TILE)
        self.shift = bind(self.output % TILE // LANES * 2)

    def source(self, step: Expr, index: Expr) -> tuple[Buffer, list[Expr]]:
        """Return the place of a vector of a step of 64 rows."""
        row = step * DOWN + index // (LANES * ACROSS)
        return self.packed, [row, self.tile(index // LANES % ACROSS), index % LANES]

    def unpack(self, memory: Buffer, place: Expr, group: int) -> list[list[list[Expr]]]:
        """Return the registers of 32 rows."""
        pairs = T.decl_buffer(
            [int(memory.shape[0]) * 2], "int32x2", data=memory.data, scope=memory.scope()
        )
        found = []
        for chunk in range(CHUNKS):
            tile = (CHUNKS * group + chunk) * ACROSS + self.output // TILE
            words = []
            for half in range(2):
                at = (place + tile * LANES) * 2 + half * LANES + self.quarter
                pair = bind(pairs[at])
                words += [held(lane(pair, i) >> self.shift) for i in range(2)]
            found.append([self._product(words, i) for i in range(PRODUCTS)])
        return found

    def _product(self, four: list[Expr], i: int) -> list[Expr]:
        """Return the registers of the outputs ``2 i`` and ``2 i + 1`` of four rows."""
        registers = []
        for early in (0, 2):
            for output in (2 * i, 2 * i + 1):
                # Byte `output` of either row, into the low bytes of the halves.
                pair = bytes_of(four[early], four[early + 1], output | (LANES + output) << 8)
                pair = T.reinterpret("float16x2", (pair & PAIRS) | MAGIC)
                weight = pair - T.broadcast(T.float16(1025.0), 2)
                registers.append(held(T.reinterpret("int32", weight)))
        return registers
