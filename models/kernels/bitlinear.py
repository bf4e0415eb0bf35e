"""BitLinear with LoRA: the exact W1.58A8 product and its adapter.

Several projections of one input (query, key and value; gate and up) are one group: their rows are
stacked, the input is quantised once. Arithmetic after Ma et al. 2024 ("The Era of 1-bit LLMs",
arXiv 2402.17764): with ``a = max_k |x|`` (at least 1e-5) of a token,

    q = clip(round(x * 127 / a), -128, 127)            int8, round half to even
    y = (sum_k q W) * a / 127 * scale                  int32 accumulation
        + lora_scale * (x' A^T) B                      float32, x' = dropout(x)

`bitlinear_vjp.py` holds the way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import relax, te, tirx

from ..packing import DENSE, PACKINGS, TILE, TWO_BIT
from .emit import Parameters, emit_differentiable

EPSILON = 1e-5
"""Smallest absmax of a token, as the published models clamp it."""


@dataclass(frozen=True)
class LinearGroup:
    """Projections that share an input.

    Attributes
    ----------
    name : str
        ``"qkv"``, ``"o"``, ``"gate_up"`` or ``"down"``.
    modules : tuple of str
        The projections in row order.
    inputs : int
        K, the width of the shared input.
    outputs : tuple of int
        Rows of each projection; N is their sum.
    adapted : tuple of bool
        Which projections carry an adapter.
    packing : str
        How the matrix is packed, see `models/packing.py`; ``"dense"`` where it is not.
    """

    name: str
    modules: tuple[str, ...]
    inputs: int
    outputs: tuple[int, ...]
    adapted: tuple[bool, ...]
    packing: str = TWO_BIT.name

    @property
    def rows(self) -> int:
        """N, the rows of all projections."""
        return sum(self.outputs)

    @property
    def adapted_rows(self) -> int:
        """Rows of the projections that carry an adapter."""
        return sum(n for n, adapted in zip(self.outputs, self.adapted, strict=True) if adapted)

    @property
    def adapters(self) -> int:
        """Number of projections that carry an adapter."""
        return sum(self.adapted)

    def parameters(self, lora_scale: float) -> Parameters:
        """Return the static parameters of this group's kernels."""
        # Only what differs from the rule is named: records of kernels know them by these.
        packing = {} if self.packing in (TWO_BIT.name, DENSE) else {"packing": self.packing}
        return {
            "outputs": list(self.outputs),
            "adapted": [int(a) for a in self.adapted],
            "lora_scale": float(lora_scale),
            **packing,
        }


@dataclass(frozen=True)
class Segment:
    """One projection's place in its group: first row, adapter index and first adapter column."""

    begin: int
    end: int
    adapter: int | None
    column: int


def segments(parameters: Parameters) -> list[Segment]:
    """Return the projections of a group from its kernels' static parameters."""
    found, row, adapter, column = [], 0, 0, 0
    for size, adapted in zip(parameters["outputs"], parameters["adapted"], strict=True):
        size = int(size)
        found.append(Segment(row, row + size, adapter if int(adapted) else None, column))
        row += size
        if int(adapted):
            adapter, column = adapter + 1, column + size
    return found


def packing_of(parameters: Parameters) -> str:
    """Return how a group's matrix is packed from its kernels' static parameters."""
    return str(parameters.get("packing", TWO_BIT.name))


def weight_at(packed: te.Tensor, n: tirx.PrimExpr, k: tirx.PrimExpr, packing: str) -> tirx.PrimExpr:
    """Return the int32 ternary value of row n, column k of a packed matrix."""
    columns = PACKINGS[packing].columns
    word = packed[tirx.floordiv(n, TILE), tirx.floordiv(k, columns), tirx.floormod(n, TILE)]
    column = tirx.Cast("int32", tirx.floormod(k, columns))
    byte, digit = tirx.floormod(column, 4), tirx.floordiv(column, 4)
    if packing == TWO_BIT.name:
        return ((word >> (8 * byte + 2 * digit)) & 3) - 1
    # 3 to the power of 0..4, bit by bit of the exponent.
    power = (1 + 2 * (digit & 1)) * (1 + 4 * (digit & 2)) * (1 + 20 * (digit & 4))
    fraction = (((word >> (8 * byte)) & 255) * power) & 255
    return ((3 * fraction) >> 8) - 1


def by_segment(parts: list[Segment], n: tirx.PrimExpr, value: object) -> tirx.PrimExpr:
    """Select ``value(segment)`` of the segment that holds row n."""
    chosen = value(parts[-1])  # type: ignore[operator]
    for part in reversed(parts[:-1]):
        chosen = tirx.Select(n < part.end, value(part), chosen)  # type: ignore[operator]
    return chosen


def scale_at(scale: te.Tensor, parts: list[Segment], n: tirx.PrimExpr) -> tirx.PrimExpr:
    """Return the scale of row n."""
    return by_segment(parts, n, lambda part: scale[parts.index(part)])


def down(x: te.Tensor, a: te.Tensor) -> te.Tensor:
    """``u[t, s, j] = sum_k x[t, k] A[s, j, k]``."""
    k = te.reduce_axis((0, x.shape[1]), "k")
    return te.compute(
        (x.shape[0], a.shape[0], a.shape[1]),
        lambda t, s, j: te.sum(x[t, k] * a[s, j, k], axis=k),
        "lora_down",
    )


def _up(
    u: te.Tensor, b: te.Tensor, parts: list[Segment], rows: int, lora_scale: float
) -> te.Tensor:
    """``z[t, n] = lora_scale sum_j u[t, s(n), j] B[j, column(n)]``, zero where not adapted."""
    j = te.reduce_axis((0, b.shape[0]), "j")

    def term(t: tirx.Var, n: tirx.Var) -> tirx.PrimExpr:
        adapted = by_segment(parts, n, lambda p: tirx.const(p.adapter is not None, "bool"))
        adapter = by_segment(parts, n, lambda p: tirx.const(p.adapter or 0, "int64"))
        column = by_segment(
            parts, n, lambda p: n - p.begin + p.column if p.adapter is not None else n * 0
        )
        return te.sum(
            tirx.if_then_else(
                adapted, lora_scale * u[t, adapter, j] * b[j, column], tirx.const(0.0, "float32")
            ),
            axis=j,
        )

    return te.compute((u.shape[0], rows), term, "lora_up")


def _ternary_product(
    x: te.Tensor, packed: te.Tensor, scale: te.Tensor, parts: list[Segment], packing: str
) -> te.Tensor:
    tokens, width = x.shape
    k = te.reduce_axis((0, width), "k")
    absmax = te.compute((tokens,), lambda t: te.max(tirx.abs(x[t, k]), axis=k), "absmax")
    bound = te.compute((tokens,), lambda t: tirx.max(absmax[t], tirx.const(EPSILON, "float32")))
    quantised = te.compute(
        (tokens, width),
        lambda t, k: tirx.Cast(
            "int8",
            tirx.max(tirx.min(tirx.nearbyint(x[t, k] * (127.0 / bound[t])), 127.0), -128.0),
        ),
        "quantised",
    )
    r = te.reduce_axis((0, width), "r")
    rows = parts[-1].end
    product = te.compute(
        (tokens, rows),
        lambda t, n: te.sum(
            tirx.Cast("int32", quantised[t, r]) * weight_at(packed, n, r, packing), axis=r
        ),
        "product",
    )
    return te.compute(
        (tokens, rows),
        lambda t, n: (
            tirx.Cast("float32", product[t, n]) * (bound[t] / 127.0 * scale_at(scale, parts, n))
        ),
        "base",
    )


def projected(
    x: te.Tensor,
    packed: te.Tensor,
    scale: te.Tensor,
    lora: Sequence[te.Tensor],
    parameters: Parameters,
) -> te.Tensor:
    """Return ``(T, N)``, a group's projections of x; `lora` is nothing, A and B, or A, B and x'."""
    parts = segments(parameters)
    base = _ternary_product(x, packed, scale, parts, packing_of(parameters))
    if not lora:
        return base
    a, b = lora[:2]
    return with_adapters(base, lora[2] if len(lora) > 2 else x, a, b, parameters)


def with_adapters(
    base: te.Tensor, x: te.Tensor, a: te.Tensor, b: te.Tensor, parameters: Parameters
) -> te.Tensor:
    """Return ``(T, N)`` base plus the adapters' outputs."""
    parts = segments(parameters)
    z = _up(down(x, a), b, parts, parts[-1].end, float(parameters["lora_scale"]))
    return te.compute(base.shape, lambda t, n: base[t, n] + z[t, n], "with_adapters")


def bitlinear(
    bb: relax.BlockBuilder,
    x: relax.Expr,
    packed: relax.Expr,
    scale: relax.Expr,
    group: LinearGroup,
    adapter: tuple[relax.Expr, relax.Expr] | None = None,
    lora_scale: float = 1.0,
    lora_input: relax.Expr | None = None,
) -> relax.Var:
    """Emit a group of BitLinear projections with their adapters.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    x : relax.Expr
        ``(T, K)`` float32, quantised inside.
    packed : relax.Expr
        ``(N / 16, W, 16)`` int32 in the group's packing, see `models/packing.py`.
    scale : relax.Expr
        ``(S,)`` float32, one scale for each projection.
    group : LinearGroup
        The projections.
    adapter : tuple of relax.Expr, optional
        ``A (S', r, K)`` and ``B (r, N')`` float32 over the S' adapted projections and their N'
        rows.
    lora_scale : float
        ``alpha / r``, or ``alpha / sqrt(r)`` for rsLoRA.
    lora_input : relax.Expr, optional
        ``(T, K)`` float32, the adapter's input where dropout made it differ from x.

    Returns
    -------
    relax.Var
        ``(T, N)`` float32.
    """
    parameters = group.parameters(lora_scale)

    def compute(x: te.Tensor, packed: te.Tensor, scale: te.Tensor, *lora: te.Tensor) -> te.Tensor:
        return projected(x, packed, scale, lora, parameters)

    arguments = [x, packed, scale, *(adapter or ())]
    if adapter is not None and lora_input is not None:
        arguments.append(lora_input)
    return emit_differentiable(bb, "bitlinear", compute, arguments, parameters)
