"""The gate and the norm before a group's projections, done by each work-group for its tokens."""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from ..linear import Linear
from ..tir import Buffer, Expr, bind
from .gated import activation
from .kernel import Gpu
from .reduction import reduction
from .vectors import LANES, fours, held, lane


class Prologue:
    """Tokens as their projections see them. Make it at the top of a launch: it allocates.

    Parameters
    ----------
    gpu : Gpu
        The target's processor.
    linear : Linear
        The arguments, ``x (T, K)``, or ``(T, 2 K)`` with a gate.
    threads : int
        Threads of the work-group, a power of two.
    thread : PrimExpr
        The thread's index.
    height : int
        Tokens of the work-group, a power of two.

    Attributes
    ----------
    inverses : list of PrimExpr
        The norm's factor of each token; nothing without a norm.
    """

    def __init__(
        self, gpu: Gpu, linear: Linear, threads: int, thread: Expr, height: int = 1
    ) -> None:
        self.linear, self.x = linear, fours(linear.x)
        self.vectors = linear.columns // LANES
        self.inverses: list[Expr] = []
        self.weight: Buffer = None
        if linear.norm is not None:
            self.weight, self.sums = fours(linear.norm), reduction(gpu, threads, thread, height)

    @property
    def inverse(self) -> Expr:
        """The norm's factor of a single token; None without a norm."""
        return self.inverses[0] if self.inverses else None

    def gated(self, token: Expr, place: Expr) -> Expr:
        """Return a vector of a token after the gate."""
        kind, value = self.linear.activation, bind(self.x[token, place])
        if not kind:
            return value
        up = bind(self.x[token, place + self.vectors])
        return bind(activation(kind, value, LANES)[0] * up)

    def sum_squares(self, *totals: Expr) -> None:
        """Emit the norm's factors, if there is a norm.

        `totals` are each thread's sums of the tokens' :func:`squares`.
        """
        if self.weight is None:
            return
        self.sums.put(list(totals))
        for i in range(len(totals)):
            mean = self.sums.get(i) / T.float32(self.linear.columns)
            root = T.sqrt(mean + T.float32(self.linear.epsilon))
            self.inverses.append(held(T.float32(1.0) / root))

    def factor(self, place: Expr) -> Expr:
        """Return a vector of the norm's weight; None where there is no norm."""
        return None if self.weight is None else bind(self.weight[place])

    def normed(self, value: Expr, factor: Expr, i: int = 0) -> Expr:
        """Return a vector of the i-th gated token after the norm, given its :meth:`factor`."""
        if self.weight is None:
            return value
        return bind(value * T.broadcast(self.inverses[i], LANES) * factor)


def squares(vector: Expr) -> Expr:
    """Return the sum of a vector's squares, in the order of the norm's own kernel."""
    square = bind(vector * vector)
    return (lane(square, 0) + lane(square, 1)) + (lane(square, 2) + lane(square, 3))
