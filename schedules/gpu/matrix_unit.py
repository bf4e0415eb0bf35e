"""Matrix units: small products that the threads of a subgroup compute and hold together.

A fragment is a small matrix spread over the registers of a subgroup, in an order that the device
alone knows; it comes from memory and goes back to memory as a whole. TIR's own intrinsics name the
operations, so each generator of code maps them to what its language has: cooperative matrices in
SPIR-V (SPV_KHR_cooperative_matrix).
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import MatrixUnit
from ..tir import Buffer, Expr

LEFT, RIGHT, SUM = "matrix_a", "matrix_b", "accumulator"
"""The roles of a fragment in ``sum += left right``."""


class Fragments:
    """Some fragments of a subgroup, inside a launch.

    Parameters
    ----------
    unit : MatrixUnit
        The product they take part in.
    role : str
        `LEFT`, `RIGHT` or `SUM`.
    count : int
        How many; they are addressed by Python ints.
    """

    def __init__(self, unit: MatrixUnit, role: str, count: int) -> None:
        self.unit, self.count = unit, count
        size = {
            LEFT: unit.rows * unit.depth,
            RIGHT: unit.depth * unit.columns,
            SUM: unit.rows * unit.columns,
        }[role]
        self.dtype = unit.result if role == SUM else unit.factors
        self.buffer = T.alloc_buffer([count * size], self.dtype, scope=f"wmma.{role}")

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.unit.rows, self.unit.columns, self.unit.depth

    def clear(self) -> None:
        """Emit zeros in all of them."""
        zero = tirx.const(0, self.dtype)
        for i in range(self.count):
            T.evaluate(T.tvm_fill_fragment(self.buffer.data, *self._shape, i, zero))

    def load(self, i: int, memory: Buffer, begin: Expr, stride: int, by_row: bool) -> None:
        """Emit the reading of one.

        Parameters
        ----------
        i : int
            Which.
        memory : Buffer
            Of any dtype, as the bytes of the elements.
        begin : PrimExpr
            The element of `memory` that holds the first.
        stride : int
            From a row to the next, or with ``by_row=False`` from a column, in the fragment's
            elements.
        by_row : bool
            Whether the elements of a row lie side by side, else those of a column.
        """
        source = memory.access_ptr("r", offset=begin)
        layout = "row_major" if by_row else "col_major"
        T.evaluate(
            T.tvm_load_matrix_sync(self.buffer.data, *self._shape, i, source, stride, layout)
        )

    def store(self, i: int, memory: Buffer, begin: Expr, stride: int) -> None:
        """Emit the writing of one, row by row; see :meth:`load`."""
        place = memory.access_ptr("w", offset=begin)
        T.evaluate(
            T.tvm_store_matrix_sync(self.buffer.data, *self._shape, i, place, stride, "row_major")
        )


def multiply(sums: Fragments, i: int, left: Fragments, j: int, right: Fragments, k: int) -> None:
    """Emit ``sums[i] += left[j] right[k]``."""
    total = (sums.buffer.data, i)
    T.evaluate(T.tvm_mma_sync(*total, left.buffer.data, j, right.buffer.data, k, *total))
