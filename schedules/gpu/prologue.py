"""The gate and the norm before a group's projections, done by each work-group for its token."""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from ..linear import Linear
from ..tir import Buffer, Expr, bind
from .gated import activation
from .kernel import Gpu
from .reduction import reduction
from .vectors import LANES, fours, held, lane


class Prologue:
    """A token as its projections see it. Make it at the top of a launch: it allocates.

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
    """

    def __init__(self, gpu: Gpu, linear: Linear, threads: int, thread: Expr) -> None:
        self.linear, self.x = linear, fours(linear.x)
        self.vectors = linear.columns // LANES
        self.inverse: Expr = None
        self.weight: Buffer = None
        if linear.norm is not None:
            self.weight, self.sums = fours(linear.norm), reduction(gpu, threads, thread)

    def gated(self, token: Expr, place: Expr) -> Expr:
        """Return a vector of a token after the gate."""
        kind, value = self.linear.activation, bind(self.x[token, place])
        if not kind:
            return value
        up = bind(self.x[token, place + self.vectors])
        return bind(activation(kind, value, LANES)[0] * up)

    def sum_squares(self, total: Expr) -> None:
        """Emit the norm's factor from each thread's sum of :func:`squares`, if there is a norm."""
        if self.weight is None:
            return
        self.sums.put([total])
        mean = self.sums.get() / T.float32(self.linear.columns)
        self.inverse = held(T.float32(1.0) / T.sqrt(mean + T.float32(self.linear.epsilon)))

    def factor(self, place: Expr) -> Expr:
        """Return a vector of the norm's weight; None where there is no norm."""
        return None if self.weight is None else bind(self.weight[place])

    def normed(self, value: Expr, factor: Expr) -> Expr:
        """Return a vector of the gated token after the norm, given its :meth:`factor`."""
        if self.weight is None:
            return value
        return bind(value * T.broadcast(self.inverse, LANES) * factor)


def squares(vector: Expr) -> Expr:
    """Return the sum of a vector's squares, in the order of the norm's own kernel."""
    square = bind(vector * vector)
    return (lane(square, 0) + lane(square, 1)) + (lane(square, 2) + lane(square, 3))
