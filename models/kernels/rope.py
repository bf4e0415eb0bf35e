"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), the half-rotated form of Llama.

A pair is ``(x[d], x[d + D/2])``; position p turns it by ``p * theta^(-2 d / D)``.

At position 100,000 a float32 angle is already off by a hundredth, and many graphics processors have
no float64. So angles are fixed-point numbers of turns in int64: whole turns fall away exactly.
"""

from __future__ import annotations

from decimal import Decimal, localcontext

from tvm import relax, te, tirx

from .emit import emit

TAU = Decimal("6.28318530717958647692528676655900576839433879875")
HALF_BITS = 31
"""An angle is a multiple of ``2^-31`` turns, a frequency of ``2^-62``: two halves of 31 bits."""
HALF_MASK = (1 << HALF_BITS) - 1


def _int64(value: int) -> tirx.PrimExpr:
    return tirx.const(value, "int64")


def _frequencies(head_dim: int, theta: float) -> list[int]:
    """Return ``theta^(-2 d / D) / (2 pi)`` for d below D/2, in units of ``2^-62`` turns."""
    with localcontext() as context:
        context.prec = 40
        pairs = [Decimal(-2 * d) / Decimal(head_dim) for d in range(head_dim // 2)]
        return [round(Decimal(theta) ** pair / TAU * 2 ** (2 * HALF_BITS)) for pair in pairs]


def _chosen(values: list[int], index: tirx.PrimExpr, first: int = 0) -> tirx.PrimExpr:
    """Return ``values[index - first]`` by bisection."""
    if len(values) == 1:
        return _int64(values[0])
    middle = len(values) // 2
    low = _chosen(values[:middle], index, first)
    return tirx.Select(index < first + middle, low, _chosen(values[middle:], index, first + middle))


def rope_table(
    bb: relax.BlockBuilder, positions: int | tirx.PrimExpr, head_dim: int, theta: float
) -> relax.Var:
    """Emit the table of rotations.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    positions : int or PrimExpr
        M, at most ``2^31``.
    head_dim : int
        D, even.
    theta : float
        The base of the frequencies, at least 1.

    Returns
    -------
    relax.Var
        ``(M, D)`` float32: for each position D/2 cosines, then D/2 sines.
    """
    half, frequencies = head_dim // 2, _frequencies(head_dim, theta)
    bits, mask, straight = _int64(HALF_BITS), _int64(HALF_MASK), _int64(1 << (HALF_BITS - 1))

    def entry(p: tirx.Var, d: tirx.Var) -> tirx.PrimExpr:
        frequency = _chosen(frequencies, tirx.floormod(d, half))
        place = tirx.Cast("int64", p)
        turned = place * (frequency >> bits) + ((place * (frequency & mask)) >> bits)
        # The sine is the cosine a quarter of a turn before.
        quarter = tirx.Select(d < half, _int64(0), _int64(1 << (HALF_BITS - 2)))
        # Whole turns fall away; within half a turn of zero a float32 is finest.
        angle = ((turned - quarter + straight) & mask) - straight
        unit = tirx.const(float(TAU / (1 << HALF_BITS)), "float32")
        return tirx.cos(tirx.Cast("float32", tirx.Cast("int32", angle)) * unit)

    return emit(
        bb,
        "rope_table",
        lambda: te.compute((positions, head_dim), entry, "rope_table"),
        [],
    )


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
