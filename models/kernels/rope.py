"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), the half-rotated form of Llama.

A pair is ``(x[d], x[d + D/2])``; position p turns it by ``p * theta^(-2 d / D)``.
"""

from __future__ import annotations

from tvm import relax, te, tirx

from .emit import emit


def rope_table(
    bb: relax.BlockBuilder, positions: int | tirx.PrimExpr, head_dim: int, theta: float
) -> relax.Var:
    """Emit the ``(positions, D)`` float32 table: D/2 cosines, then D/2 sines, for each position."""
    half = head_dim // 2

    def compute() -> te.Tensor:
        def entry(p: tirx.Var, d: tirx.Var) -> tirx.PrimExpr:
            # In float64: at position 100,000 a float32 angle is already off by a hundredth.
            pair = tirx.Cast("float64", tirx.floormod(d, half))
            frequency = tirx.exp(
                pair
                * tirx.const(-2.0 / head_dim, "float64")
                * tirx.log(tirx.const(theta, "float64"))
            )
            angle = tirx.Cast("float64", p) * frequency
            return tirx.Cast(
                "float32", tirx.if_then_else(d < half, tirx.cos(angle), tirx.sin(angle))
            )

        return te.compute((positions, head_dim), entry, "rope_table")

    return emit(bb, "rope_table", compute, [])


def rotated(
    x_at: object, table: te.Tensor, p: tirx.PrimExpr, d: tirx.PrimExpr, half: int
) -> tirx.PrimExpr:
    """Return element d of the vector ``x_at(d)`` rotated to position p."""
    pair = tirx.floormod(d, half)
    cosine, sine = table[p, pair], table[p, half + pair]
    partner = x_at(tirx.floormod(d + half, 2 * half))  # type: ignore[operator]
    sign = tirx.if_then_else(d < half, -sine, sine)
    return x_at(d) * cosine + partner * sign  # type: ignore[operator]


def unrotated(
    x_at: object, table: te.Tensor, p: tirx.PrimExpr, d: tirx.PrimExpr, half: int
) -> tirx.PrimExpr:
    """Return element d of the vector ``x_at(d)`` rotated back from position p (the transpose)."""
    pair = tirx.floormod(d, half)
    cosine, sine = table[p, pair], table[p, half + pair]
    partner = x_at(tirx.floormod(d + half, 2 * half))  # type: ignore[operator]
    sign = tirx.if_then_else(d < half, sine, -sine)
    return x_at(d) * cosine + partner * sign  # type: ignore[operator]
