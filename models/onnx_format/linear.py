"""BitLinear in ONNX operators, in the exact arithmetic of BitNet b1.58, with LoRA beside it.

With ``f = 127 / max(absmax(x), 1e-5)`` of a token: ``y = (round(x f) @ codes.T) * (scale / f)``.
The product of whole numbers is exact in each of the three forms:

- 2 bits: MatMulNBits with its int8 kernels, kept exact by guard columns (see `nbits`);
- 4 bits: MatMulNBits in float32, where a sum of whole numbers is exact up to 2^24;
- 8 bits: MatMulInteger, which every ONNX runtime has; uint8 activations, since onnxruntime's
  kernels for int8 ones are many times slower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from ..checkpoint import TernaryWeight
from .builder import MICROSOFT, GraphBuilder
from .nbits import BLOCK, GUARD, GuardedColumns, pack

Adapters = Sequence[tuple[Mapping[str, npt.NDArray[np.float32]], float]]
"""Tensors by ``<module path>.lora_A`` and ``.lora_B``, each set with its factor."""

_EPSILON = 1e-5
_ZERO_POINT = 128
_FLOAT32_ACCURACY, _INT8_ACCURACY = 1, 4
_EXACT_FLOAT32 = 1 << 24


class QuantizedInput:
    """The activations that several projections share, quantised once.

    Parameters
    ----------
    graph : GraphBuilder
    x : str
        float32 [B, T, K].
    columns : int
        K.
    bits : int
        Bits of a weight: 2, 4 or 8.
    """

    def __init__(self, graph: GraphBuilder, x: str, columns: int, bits: int) -> None:
        assert columns * GUARD < _EXACT_FLOAT32
        self.graph, self.x, self.columns, self.bits = graph, x, columns, bits
        absmax = graph.op("ReduceMax", graph.op("Abs", x), graph.integers([-1]), keepdims=1)
        bounded = graph.op("Max", absmax, graph.scalar(_EPSILON))
        self.factor = graph.op("Div", graph.scalar(127.0), bounded)
        rounded = graph.op("Round", graph.op("Mul", x, self.factor))
        limits = graph.scalar(-128.0), graph.scalar(127.0)
        self.values = self._stored(graph.op("Clip", rounded, *limits))

    def _stored(self, values: str) -> str:
        """Bring whole numbers in float32 into the form that the product takes."""
        graph = self.graph
        if self.bits == 2:
            guarded = GuardedColumns(self.columns)
            if guarded.filling:
                values = graph.op("Pad", values, graph.integers([0] * 5 + [guarded.filling]))
            blocks = graph.reshape(values, 0, 0, guarded.blocks, guarded.payload)
            pads = graph.integers([0] * 7 + [1])
            blocks = graph.op("Pad", blocks, pads, graph.scalar(GUARD))
            return graph.reshape(blocks, 0, 0, guarded.width)
        if self.bits == 8:
            shifted = graph.op("Add", values, graph.scalar(float(_ZERO_POINT)))
            return graph.cast(shifted, TensorProto.UINT8)
        return values

    def linear(self, path: str, weight: TernaryWeight, adapters: Adapters) -> str:
        """Add one projection, and the adapters on it.

        Parameters
        ----------
        path : str
            The module, as ``model.layers.0.self_attn.q_proj``.
        weight : TernaryWeight
            int8 codes [N, K] and their scale.
        adapters : sequence
            Those that name the module are added.

        Returns
        -------
        str
            float32 [B, T, N].
        """
        graph = self.graph
        with graph.scope(path.rpartition(".")[2]):
            product = self._product(path, weight.codes)
            scale = graph.weight(f"{path}.weight_scale", np.array(weight.scale, np.float32))
            y = graph.op("Mul", product, graph.op("Div", scale, self.factor))
            for number, (tensors, factor) in enumerate(adapters):
                if f"{path}.lora_A" in tensors:
                    y = graph.op("Add", y, self._low_rank(path, number, tensors, factor))
        return y

    def _product(self, path: str, codes: npt.NDArray[np.int8]) -> str:
        """Add the product with the codes, exact whole numbers in float32."""
        graph, name = self.graph, f"{path}.weight"
        if self.bits == 8:
            table = graph.weight(name, np.ascontiguousarray(codes.T))
            zero = graph.weight("zero_point", np.array(_ZERO_POINT, np.uint8))
            return graph.cast(
                graph.op("MatMulInteger", self.values, table, zero), TensorProto.FLOAT
            )
        if self.bits == 2:
            block, accuracy = BLOCK, _INT8_ACCURACY
            stored = GuardedColumns(self.columns).insert(codes)
        else:
            block, accuracy = 32, _FLOAT32_ACCURACY
            stored = np.pad(codes, ((0, 0), (0, -codes.shape[1] % block)))
        rows, blocks = len(codes), stored.shape[1] // block
        # The scale of every block is one: matrices of one shape share these.
        ones = graph.weight(f"ones_{rows}_{blocks}", np.ones((rows, blocks), np.float32))
        return graph.op(
            "MatMulNBits",
            self.values,
            graph.weight(f"{name}_{self.bits}bit", pack(stored, self.bits, block)),
            ones,
            domain=MICROSOFT,
            K=stored.shape[1] if self.bits == 2 else self.columns,
            N=rows,
            bits=self.bits,
            block_size=block,
            accuracy_level=accuracy,
        )

    def _low_rank(
        self, path: str, number: int, tensors: Mapping[str, npt.NDArray[np.float32]], factor: float
    ) -> str:
        """Add ``factor * (x @ A.T) @ B.T``."""
        graph = self.graph
        a, b = tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"]
        suffix = f".{number}" if number else ""
        down = graph.weight(f"{path}.lora_A{suffix}", np.ascontiguousarray(a.T, np.float32))
        up = graph.weight(
            f"{path}.lora_B{suffix}", np.ascontiguousarray(b.T * np.float32(factor), np.float32)
        )
        return graph.op("MatMul", graph.op("MatMul", self.x, down), up)
