"""The weight of a matrix product, in every form that exporters give it, as codes or as numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..checkpoint import ALL_ROWS, CheckpointError, TernaryWeight
from .constants import Constants
from .graph import Node
from .nbits import GuardedColumns, unpack
from .tensors import export_again

Array = npt.NDArray[Any]
# A quantiser of 4 bits has the numbers -8 to 7 for a block. A symmetric one keeps -s as -8 and
# turns s into 7/8 s; an asymmetric one turns both by a fifteenth, up and down. So magnitudes down
# to 7/8 of the largest are the same ternary weight; no other model has its weights at zero or that
# near.
_SMALLEST_MAGNITUDE = 0.85
# Asymmetric quantisers of 8 bits turn by less than a hundredth, symmetric ones not at all.
_ASYMMETRIC = 0.9


class Matrix(ABC):
    """A constant matrix, ``shape`` being (outputs N, inputs K) as stored.

    Parameters
    ----------
    node : Node
        The product, to name in errors.
    """

    shape: tuple[int, int]

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    @abstractmethod
    def asymmetric(self) -> bool:
        """Whether it has zero points, so that its quantiser treated both signs alike."""

    @abstractmethod
    def levels(self, rows: slice) -> tuple[Array, Array | None]:
        """Give rows as stored numbers [n, K], and the scales [n, blocks] of column blocks."""

    def floats(self, rows: slice = ALL_ROWS) -> npt.NDArray[np.float32]:
        """Give rows as the numbers that they stand for, float32 [n, K].

        Raises
        ------
        CheckpointError
            Where one is NaN or infinite.
        """
        values, scales = self.levels(rows)
        result = np.asarray(values, np.float32)
        if scales is not None:
            block = -(-result.shape[1] // scales.shape[1])
            result = result * np.repeat(scales, block, axis=1)[:, : result.shape[1]]
        if not np.isfinite([result.min(initial=0), result.max(initial=0)]).all():
            raise CheckpointError(f"The weight of {self.node} holds NaN or infinity.", export_again)
        return result

    def ternary(self, columns: GuardedColumns | None) -> TernaryWeight:
        """Give codes and scale.

        Parameters
        ----------
        columns : GuardedColumns, optional
            Where guards stand among the columns.

        Raises
        ------
        CheckpointError
            Where the matrix is not ternary with one scale, or is zero throughout.
        """
        values, scales = self.levels(ALL_ROWS)
        scale = 1.0
        if scales is not None and scales.size and (scales == scales.flat[0]).all():
            scale = float(scales.flat[0])
        elif scales is not None:
            values = self.floats()
        if columns is not None:
            values = columns.remove(values)
        codes, magnitude = _ternarise(values, self.node, self.asymmetric)
        scale *= magnitude
        # A negative scale turns the signs.
        return TernaryWeight(codes if scale > 0 else -codes, abs(scale))


def _ternarise(values: Array, node: Node, asymmetric: bool) -> tuple[npt.NDArray[np.int8], float]:
    """Split numbers [N, K] into signs and one magnitude."""
    if not values.any():
        raise CheckpointError(f"The weight of {node} is zero throughout.", export_again)
    magnitudes = np.abs(values)
    high = float(magnitudes.max())
    low = float(magnitudes.min(initial=magnitudes.max(), where=magnitudes > 0))
    if not np.isfinite(high) or low < _SMALLEST_MAGNITUDE * high:
        raise CheckpointError(
            f"The weight of {node} is not ternary: it holds more values than -s, 0 and s.",
            "Only BitNet models, whose linear layers are ternary, can be imported.",
        )
    middle = asymmetric or low > _ASYMMETRIC * high
    return np.sign(values).astype(np.int8), (low + high) / 2 if middle else high


class DenseMatrix(Matrix):
    """Any constant tensor: numbers, or codes that later nodes scale.

    Parameters
    ----------
    node : Node
    constants : Constants
    tensor : str
    transposed : bool
        Whether it stands as [K, N].
    zero : int
        Subtracted from every number.
    """

    def __init__(
        self, node: Node, constants: Constants, tensor: str, transposed: bool, zero: int = 0
    ) -> None:
        super().__init__(node)
        self._constants, self.tensor = constants, tensor
        self._transposed, self._zero = transposed, zero
        first, second = constants.shape(tensor)
        self.shape = (second, first) if transposed else (first, second)

    def levels(self, rows: slice) -> tuple[Array, Array | None]:
        """Give rows as stored."""
        chosen = self._constants.rows(self.tensor, rows, self._transposed)
        return (chosen.astype(np.int16) - self._zero if self._zero else chosen), None

    @property
    def asymmetric(self) -> bool:
        """Whether it is dequantised with zero points."""
        constants, tensor = self._constants, self.tensor
        while (node := constants.graph.producers.get(tensor)) is not None:
            if node.kind == "DequantizeLinear" and node.input(2):
                return bool(constants.value(node.input(2)).any())
            tensor = node.input(0)
        return False

    @property
    def origin(self) -> str:
        """The stored tensor at the end of casts and transposes, to tell a tied head by."""
        graph, tensor = self._constants.graph, self.tensor
        while (node := graph.producers.get(tensor)) and node.kind in (
            "Cast", "Identity", "Transpose", "DequantizeLinear", "Mul",
        ):  # fmt: skip
            tensor = node.input(0)
        return tensor


class BlockMatrix(Matrix):
    """The weight of com.microsoft.MatMulNBits."""

    def __init__(self, node: Node, constants: Constants) -> None:
        super().__init__(node)
        self._constants = constants
        try:
            self.shape = int(node.attributes["N"]), int(node.attributes["K"])
            self.block = int(node.attributes["block_size"])
        except KeyError as error:
            raise CheckpointError(f"{node} has no attribute {error}.", export_again) from error
        self._bits = int(node.attributes.get("bits", 4))
        rows, columns = self.shape
        if self._bits not in (2, 4, 8) or self.block < 16 or rows < 1 or columns < 1:
            raise CheckpointError(
                f"{node} has blocks of {self.block} columns in {self._bits} bits, which fabric "
                "does not read.",
                "Export with 2, 4 or 8 bits.",
            )
        self._blocks = -(-columns // self.block)
        if node.input(4):
            raise CheckpointError(
                f"{node} has its columns in another order (g_idx), which fabric does not read.",
                "Export without reordering (act-order).",
            )

    @property
    def asymmetric(self) -> bool:
        """Whether it has zero points."""
        return bool(self.node.input(3))

    def levels(self, rows: slice) -> tuple[Array, Array | None]:
        """Give rows as numbers around zero, and the scales of their blocks."""
        (count, columns), constants, node = self.shape, self._constants, self.node
        each = self.block * self._bits // 8
        packed = self._part(node.input(1), (count, self._blocks, each))[rows]
        scales = self._part(node.input(2), (count, self._blocks))[rows]
        values = unpack(np.asarray(packed), self._bits)
        if not node.input(3):
            zero: Array = np.array(1 << (self._bits - 1), np.int16)
        elif constants.value(node.input(3)).dtype == np.uint8:
            stored = constants.value(node.input(3)).reshape(count, -1)[rows]
            zero = np.repeat(
                unpack(stored, self._bits)[:, : self._blocks], self.block, axis=1
            ).astype(np.int16)
        else:
            stored = self._part(node.input(3), (count, self._blocks))[rows]
            zero = np.repeat(stored, self.block, axis=1)
        return (values - zero)[:, :columns], np.asarray(scales, np.float32)

    def _part(self, tensor: str, shape: tuple[int, ...]) -> Array:
        values = self._constants.value(tensor)
        if values.size != np.prod(shape, dtype=float):
            raise CheckpointError(
                f"{self.node} has {values.size} numbers in {tensor}, not {list(shape)}.",
                export_again,
            )
        return values.reshape(shape)
