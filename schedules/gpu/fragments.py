"""Fragments of which it is known what each thread of a subgroup has: sums stay in registers.

A product takes 16 rows, 8 columns and a depth of 16; as PTX lays it out (PTX ISA, "mma.m16n8k16"),
thread ``4 g + t`` has of its sums the columns ``2 t`` and ``2 t + 1`` of the rows g and ``g + 8``.
Two neighbouring fragments of sums are, as 16-bit floats, the left factor of another product, and
threads that share a row are four neighbours.

A left factor is four words. A right factor of four words is that of two products, whose columns lie
side by side. Both come from rows in shared memory, of vectors of eight 16-bit floats; a row is an
odd number of vectors, so that eight rows begin in different banks.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind
from .copies import copy_vector
from .kernel import registers, shared
from .vectors import LANES, four, held, lane

ROWS, COLUMNS, DEPTH = 16, 8, 16
"""Of a product."""
EIGHT = 8
"""16-bit floats of a vector of four words."""
WORDS, SUMS = "int32x4", "float32x4"


class Lane:
    """A thread's place in its subgroup.

    Attributes
    ----------
    subgroup : PrimExpr
        The subgroup's number.
    row, column : PrimExpr
        Its first row of a fragment of sums, and its first column.
    """

    def __init__(self) -> None:
        self.subgroup = held(T.call_pure_extern("int32", "fabric_subgroup_id"))
        self.index = held(T.call_pure_extern("int32", "fabric_subgroup_lane"))
        self.row, self.column = bind(self.index // 4), bind(self.index % 4 * 2)


class HalfRows:
    """Rows of 16-bit floats in shared memory, which fragments come from.

    Make it at the top of a launch: it allocates.

    Parameters
    ----------
    lane : Lane
        The thread's place.
    rows, vectors : int
        Its rows, and the vectors of one, an even number.
    """

    def __init__(self, lane: Lane, rows: int, vectors: int) -> None:
        self.rows, self.pitch = rows, vectors + 1
        self.memory = shared([rows * self.pitch], WORDS)
        index = lane.index
        self._outer = bind(index % 16 * self.pitch + index // 16)
        self._inner = bind((index % 8 + index // 16 * 8) * self.pitch + index // 8 % 2)

    def put(self, row: Expr, vector: Expr, value: Expr) -> None:
        """Emit the store of a vector."""
        T.buffer_store(self.memory, value, [row * self.pitch + vector])

    def ask(self, row: Expr, vector: Expr, source: Buffer, *index: Expr) -> None:
        """Ask for the copy of a vector, which has to be waited for."""
        copy_vector(self.memory, row * self.pitch + vector, source, *index)

    def _load(self, form: str, begin: Expr) -> Expr:
        place = self.memory.access_ptr("r", offset=begin)
        return held(T.call_pure_extern(WORDS, f"fabric_fragment_{form}", place))

    def left(self, row: Expr, vector: int) -> Expr:
        """Return the left factor of 16 rows from a row on, its depth from a vector on."""
        return self._load("rows", row * self.pitch + vector + self._outer)

    def right(self, row: Expr, vector: int) -> Expr:
        """Return the right factors whose columns are 16 rows, the depth from a vector on."""
        return self._load("rows", row * self.pitch + vector + self._inner)

    def turned(self, row: Expr, vector: int) -> Expr:
        """Return the right factors whose depth is 16 rows, the columns from a vector on."""
        return self._load("columns", row * self.pitch + vector + self._outer)


class RowSums:
    """Sums of 16 rows, in registers.

    Parameters
    ----------
    columns : int
        A multiple of 16.
    """

    def __init__(self, columns: int) -> None:
        self.count = columns // COLUMNS
        self.values = registers([self.count], SUMS)

    def clear(self) -> None:
        """Emit zeros."""
        for j in range(self.count):
            T.buffer_store(self.values, T.broadcast(T.float32(0.0), LANES), [j])

    def add(self, pair: int, left: Expr, right: Expr) -> None:
        """Emit the addition of the products with two right factors, to columns from 16 `pair`."""
        for i in range(2):
            j = 2 * pair + i
            factors = (left, lane(right, 2 * i), lane(right, 2 * i + 1))
            total = T.call_pure_extern(SUMS, "fabric_fragment_multiply", self.values[j], *factors)
            T.buffer_store(self.values, total, [j])

    def get(self, j: int) -> list[Expr]:
        """Return the thread's four sums of the j-th eight columns: two of each of its rows."""
        return [lane(self.values[j], c) for c in range(LANES)]

    def put(self, j: int, values: list[Expr]) -> None:
        """Emit the store of four such sums."""
        T.buffer_store(self.values, four(values), [j])

    def scale(self, upper: Expr, lower: Expr) -> None:
        """Emit the multiplication of the thread's rows by a factor each."""
        for j in range(self.count):
            a, b, c, d = self.get(j)
            self.put(j, [a * upper, b * upper, c * lower, d * lower])

    def left(self, pair: int) -> Expr:
        """Return columns from 16 `pair` on as a left factor of 16-bit floats."""
        words = [half_pair(*half) for half in self._halves(pair)]
        return held(four(words, "int32"))

    def left_rest(self, pair: int, left: Expr) -> Expr:
        """Return what :meth:`left` leaves of the sums, as another left factor."""
        words = [
            held(T.call_pure_extern("int32", "fabric_half_pair_rest", *half, lane(left, c)))
            for c, half in enumerate(self._halves(pair))
        ]
        return held(four(words, "int32"))

    def _halves(self, pair: int) -> list[tuple[Expr, Expr]]:
        first, second = self.get(2 * pair), self.get(2 * pair + 1)
        return [(v[c], v[c + 1]) for v in (first, second) for c in (0, 2)]


def half_pair(low: Expr, high: Expr) -> Expr:
    """Return a word of two 16-bit floats."""
    return held(T.call_pure_extern("int32", "fabric_half_pair", low, high))


def half_vectors(values: list[Expr], bounded: bool = False) -> tuple[Expr, Expr]:
    """Return eight float32 as a vector of 16-bit floats, and one of what that leaves of them.

    What is `bounded` ends at the largest of them, by the conversion itself.
    """
    name = "fabric_bounded_pair" if bounded else "fabric_half_pair"
    pairs = [(values[2 * i], values[2 * i + 1]) for i in range(LANES)]
    words = [held(T.call_pure_extern("int32", name, *pair)) for pair in pairs]
    rests = [
        held(T.call_pure_extern("int32", f"{name}_rest", *pair, word))
        for pair, word in zip(pairs, words, strict=True)
    ]
    return four(words, "int32"), four(rests, "int32")


def exp2(value: Expr) -> Expr:
    """Return an exponential to base 2 by the device's one instruction; zero below 2^-126."""
    return T.call_pure_extern("float32", "fabric_exp2", value)


def quad_sum(value: Expr) -> Expr:
    """Return the sum over the four threads of a row."""
    return held(T.call_pure_extern("float32", "fabric_quad_add", held(value)))


def quad_max(value: Expr) -> Expr:
    """Return the maximum over the four threads of a row."""
    return held(T.call_pure_extern("float32", "fabric_quad_max", held(value)))


def clamped(value: Expr, largest: float) -> Expr:
    """Return a value within what is representable, a number in any case."""
    return tirx.max(tirx.min(value, T.float32(largest)), T.float32(-largest))
