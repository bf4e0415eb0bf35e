"""What some families do to queries and keys before attention: a norm, and rotations of their own.

Both work on the fused ``(T, (Hq + 2 Hkv) D)`` input of attention and leave the values as they are.
A head is normalised as in `norm.py` over its D elements, with one weight for all query heads and
one for all key heads. Where layers differ in rotary base and window, each has a *span*: the first
column of its table among all tables, and the window. Rotated here, by its own table, a layer's
attention needs no rotation (:func:`no_rotation`), and sees a window by later starts
(:func:`windowed`): so the kernels of attention are those of every model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from tvm import relax, te, tirx

from .attention import AttentionShape
from .emit import Parameters, emit, emit_differentiable, register_adjoint
from .rope import rotated, unrotated


def _inverse_rms(x: te.Tensor, shape: AttentionShape, epsilon: float) -> te.Tensor:
    d = shape.head_dim
    k = te.reduce_axis((0, d), "k")
    heads = shape.heads + shape.kv_heads
    total = te.compute(
        (x.shape[0], heads),
        lambda t, h: te.sum(x[t, h * d + k] * x[t, h * d + k], axis=k),
        "square_sum",
    )
    return te.compute(
        total.shape, lambda t, h: 1.0 / tirx.sqrt(total[t, h] / float(d) + epsilon), "inverse_rms"
    )


class _Places:
    """Columns of the fused input: the head of one, its place there, and the weight of its norm."""

    def __init__(self, shape: AttentionShape, query: te.Tensor, key: te.Tensor) -> None:
        self.shape, self.query, self.key = shape, query, key
        self.last = shape.heads + shape.kv_heads - 1

    def weight(self, c: tirx.PrimExpr) -> tirx.PrimExpr:
        """Return the weight of column c, of a query or key."""
        e = tirx.floormod(c, self.shape.head_dim)
        return tirx.if_then_else(c < self.shape.key_column, self.query[e], self.key[e])

    def head(self, c: tirx.PrimExpr) -> tirx.PrimExpr:
        """Return the head of column c among those with a norm."""
        return tirx.min(tirx.floordiv(c, self.shape.head_dim), self.last)

    def either(
        self, c: tirx.PrimExpr, normed: tirx.PrimExpr, value: tirx.PrimExpr
    ) -> tirx.PrimExpr:
        """Return one of both by whether column c is of a query or key, or of a value."""
        return tirx.if_then_else(c < self.shape.value_column, normed, value)


def head_norm(
    bb: relax.BlockBuilder,
    qkv: relax.Expr,
    query: relax.Expr,
    key: relax.Expr,
    shape: AttentionShape,
    epsilon: float,
) -> relax.Var:
    """Emit the norms of every head of queries and keys.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    qkv : relax.Expr
        ``(T, (Hq + 2 Hkv) D)`` float32.
    query, key : relax.Expr
        ``(D,)`` float32, the weights, frozen.
    shape : AttentionShape
        The heads.
    epsilon : float
        Added to the mean square.

    Returns
    -------
    relax.Var
        The shape of `qkv`.
    """

    def compute(x: te.Tensor, query: te.Tensor, key: te.Tensor) -> te.Tensor:
        inverse, at = _inverse_rms(x, shape, epsilon), _Places(shape, query, key)
        return te.compute(
            x.shape,
            lambda t, c: at.either(c, x[t, c] * inverse[t, at.head(c)] * at.weight(c), x[t, c]),
            "head_norm",
        )

    parameters = {**asdict(shape), "epsilon": epsilon}
    return emit_differentiable(bb, "head_norm", compute, [qkv, query, key], parameters)


@register_adjoint("head_norm")
def _head_norm_adjoint(
    bb: relax.BlockBuilder, dy: relax.Var, arguments: Sequence[relax.Expr], parameters: Parameters
) -> list[relax.Expr | None]:
    shape, epsilon = _shape(parameters), float(parameters["epsilon"])
    d = shape.head_dim

    def compute(dy: te.Tensor, x: te.Tensor, query: te.Tensor, key: te.Tensor) -> te.Tensor:
        inverse, at = _inverse_rms(x, shape, epsilon), _Places(shape, query, key)
        k = te.reduce_axis((0, d), "k")
        along = te.compute(
            inverse.shape,
            lambda t, h: te.sum(dy[t, h * d + k] * at.weight(h * d + k) * x[t, h * d + k], axis=k),
            "projection",
        )

        def adjoint(t: tirx.Var, c: tirx.Var) -> tirx.PrimExpr:
            h = at.head(c)
            r = inverse[t, h]
            normed = r * (dy[t, c] * at.weight(c) - x[t, c] * r * r * along[t, h] / float(d))
            return at.either(c, normed, dy[t, c])

        return te.compute(x.shape, adjoint, "head_norm_vjp")

    return [emit(bb, "head_norm_vjp", compute, [dy, *arguments], dict(parameters)), None, None]


Turn = Callable[..., "tirx.PrimExpr"]


def _turned(turn: Turn, shape: AttentionShape) -> Callable[..., te.Tensor]:
    """Return the computation that turns queries and keys by ``turn``, forth or back."""
    d = shape.head_dim

    def compute(x: te.Tensor, position: te.Tensor, rope: te.Tensor, span: te.Tensor) -> te.Tensor:
        def element(t: tirx.Var, c: tirx.Var) -> tirx.PrimExpr:
            first, e = tirx.floordiv(c, d) * d, tirx.floormod(c, d)
            table = _Shifted(rope, span)
            value = turn(lambda i: x[t, first + i], table, position[t], e, d // 2)
            return tirx.if_then_else(c < shape.value_column, value, x[t, c])

        return te.compute(x.shape, element, "rotate_heads")

    return compute


class _Shifted:
    """A layer's table among those that stand side by side."""

    def __init__(self, rope: te.Tensor, span: te.Tensor) -> None:
        self.rope, self.span = rope, span

    def __getitem__(self, place: tuple[tirx.PrimExpr, tirx.PrimExpr]) -> tirx.PrimExpr:
        return self.rope[place[0], self.span[0] + place[1]]


def rotate_heads(
    bb: relax.BlockBuilder,
    qkv: relax.Expr,
    position: relax.Expr,
    rope: relax.Expr,
    span: relax.Expr,
    shape: AttentionShape,
) -> relax.Var:
    """Emit the rotation of queries and keys by one of several tables.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    qkv : relax.Expr
        ``(T, (Hq + 2 Hkv) D)`` float32.
    position : relax.Expr
        ``(T,)`` int32, of each token in its document.
    rope : relax.Expr
        ``(M, n D)`` float32, n tables of :func:`rope_table` side by side.
    span : relax.Expr
        ``(2,)`` int32, the first column of the layer's table, and its window.
    shape : AttentionShape
        The heads.

    Returns
    -------
    relax.Var
        The shape of `qkv`.
    """
    arguments = [qkv, position, rope, span]
    compute = _turned(rotated, shape)
    return emit_differentiable(bb, "rotate_heads", compute, arguments, asdict(shape))


@register_adjoint("rotate_heads")
def _rotate_heads_adjoint(
    bb: relax.BlockBuilder, dy: relax.Var, arguments: Sequence[relax.Expr], parameters: Parameters
) -> list[relax.Expr | None]:
    compute = _turned(unrotated, _shape(parameters))
    dx = emit(bb, "rotate_heads_vjp", compute, [dy, *arguments[1:]], dict(parameters))
    return [dx, None, None, None]


def _shape(parameters: Parameters) -> AttentionShape:
    return AttentionShape(*(int(parameters[name]) for name in ("heads", "kv_heads", "head_dim")))


def positions(bb: relax.BlockBuilder, starts: relax.Expr) -> relax.Var:
    """Emit the ``(B C,)`` int32 positions in their documents of ``(B, C)`` starts."""

    def compute(starts: te.Tensor) -> te.Tensor:
        batch, context = starts.shape

        def position(t: tirx.Var) -> tirx.PrimExpr:
            b, i = tirx.floordiv(t, context), tirx.floormod(t, context)
            return tirx.Cast("int32", i) - starts[b, i]

        return te.compute((batch * context,), position, "positions")

    return emit_differentiable(bb, "positions", compute, [starts])


def windowed(bb: relax.BlockBuilder, starts: relax.Expr, span: relax.Expr) -> relax.Var:
    """Emit ``(B, C)`` int32, the first token that each one attends to within a layer's window."""

    def compute(starts: te.Tensor, span: te.Tensor) -> te.Tensor:
        return te.compute(
            starts.shape,
            lambda b, i: tirx.max(starts[b, i], tirx.Cast("int32", i) + 1 - span[1]),
            "windowed",
        )

    return emit_differentiable(bb, "windowed", compute, [starts, span])


def no_rotation(bb: relax.BlockBuilder, places: int | tirx.PrimExpr, head_dim: int) -> relax.Var:
    """Emit a ``(places, D)`` float32 table of no rotation: cosines are one, sines zero."""

    def compute() -> te.Tensor:
        return te.compute(
            (places, head_dim),
            lambda p, d: tirx.Cast("float32", d < head_dim // 2),
            "no_rotation",
        )

    return emit_differentiable(bb, "no_rotation", compute, [])


@register_adjoint("positions")
@register_adjoint("windowed")
@register_adjoint("no_rotation")
def _frozen(
    bb: relax.BlockBuilder, dy: relax.Var, arguments: Sequence[relax.Expr], parameters: Parameters
) -> list[relax.Expr | None]:
    return [None] * len(arguments)
