"""Rows of gradients as scaled 16-bit floats, for products that sum in 32 bits.

A row with the largest magnitude m is kept as ``h = x 2^(14 - e)``, with ``2^e <= m < 2^(e + 1)``:
its largest elements are just below 2^15, where 16 bits end at 65504, and all down to 2^-29 of them
keep 11 bits, however small a gradient is; unscaled they would lose bits below 6e-5. The power of
two is exact, and so is taking it back. Half the bits take half the memory, shared memory and loads.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, shape, splat
from .kernel import ceil_div, loop, registers, scratch
from .operand import HALF, HALVES, Operand, scalars
from .token_words import Order, largest, put_word
from .vectors import LANES, held, lane
from .work import THREADS, Place, Work

TOP = 14
"""The exponent of two that a row's largest magnitude gets."""
EXPONENT = 0x7F800000
"""The bits of a float32's exponent."""
BIAS, FRACTION = 127, 23
"""The exponent field of 1, and its place in a float32."""


def scales(absmax: Expr) -> tuple[Expr, Expr]:
    """Return what a row is multiplied by and what its products are multiplied by, powers of two.

    A row smaller than 2^-111 is taken to be as large.
    """
    bits = T.reinterpret("int32", absmax) & EXPONENT
    field = held(tirx.max(bits, (TOP + 2) << FRACTION))
    down = held(field - (TOP << FRACTION))
    up = ((2 * BIAS) << FRACTION) - down
    return held(T.reinterpret("float32", up)), held(T.reinterpret("float32", down))


class Halves(Work):
    """The work that fills the buffers, a work-group for each row.

    Parameters
    ----------
    rows : PrimExpr or int
        T.
    padded : PrimExpr or int
        T', at least T.
    columns : int
        N, a multiple of four.
    fetch : callable
        ``fetch(row, vector)`` returns four adjacent float32.
    order : callable, optional
        Where the words go; None for the order of the columns.

    Attributes
    ----------
    words : Buffer
        ``(T', N / 2)`` int32, two 16-bit floats each; what lies beyond T is of no use.
    undo : Buffer
        ``(T',)`` float32, what a product with a row is multiplied by.
    """

    vectors = THREADS // LANES

    def __init__(
        self,
        rows: Expr,
        padded: Expr,
        columns: int,
        fetch: Callable[[Expr, Expr], Expr],
        order: Order | None = None,
    ) -> None:
        self.order = order
        self.groups, self.columns, self.fetch = rows, columns // LANES, fetch
        self.words = scratch([padded, columns // 2], "int32")
        self.undo = scratch([padded])

    def operand(self) -> Operand:
        """Return the factor of a product whose outer axis is the rows, its depth the columns."""
        return Operand(
            lambda row, k: self.pairs()[row, k // LANES],
            dtype="int32x2",
            unpack=lambda words, row, k: [T.reinterpret(HALVES, words)],
            element=HALF,
            undo=lambda row: self.undo[row],
        )

    def pairs(self) -> Buffer:
        """Return the words seen as pairs, four 16-bit floats each; inside a launch."""
        rows, words = shape(self.words)
        return T.decl_buffer([rows, words // 2], "int32x2", data=self.words.data)

    def put(self, row: Expr, vector: Expr, halves: Expr) -> None:
        """Emit the store of four 16-bit floats of a row."""
        put_word(self.pairs(), T.reinterpret("int32x2", halves), row, vector, self.order)

    def _each(self, place: Place, body: Callable[[Expr], None]) -> None:
        """Emit ``body(vector)`` for a thread's vectors of the row; the last may be several's."""
        with loop(ceil_div(self.columns, THREADS)) as step:
            vector = step * THREADS + place.thread
            if self.columns % THREADS:
                vector = tirx.min(vector, self.columns - 1)
            body(bind(vector))

    def start(self, place: Place) -> None:
        """Emit the largest magnitude of each thread's vectors."""
        top = registers([1])
        T.buffer_store(top, T.float32(0.0), [0])

        def look(vector: Expr) -> None:
            value = bind(self.fetch(place.group, vector))
            T.buffer_store(top, tirx.max(top[0], largest(value)), [0])

        self._each(place, look)
        T.buffer_store(scalars(place.memory), top[0], [place.thread])

    def finish(self, place: Place) -> None:
        """Emit the row's factor, and its elements times that."""
        tops = place.memory[0]
        for i in range(1, self.vectors):
            tops = tirx.max(tops, place.memory[i])
        tops = held(tops)
        top = tirx.max(*(tirx.max(lane(tops, i), lane(tops, i + 1)) for i in (0, 2)))
        up, down = scales(held(top))

        def put(vector: Expr) -> None:
            halves = T.Cast(HALVES, self.fetch(place.group, vector) * splat(up, LANES))
            self.put(place.group, vector, halves)

        self._each(place, put)
        with T.If(place.thread == 0), T.Then():
            T.buffer_store(self.undo, down, [place.group])
