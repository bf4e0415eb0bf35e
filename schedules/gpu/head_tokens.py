"""The tokens that carry loss, brought together for the products of the head."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, shape, when
from .elements import load
from .kernel import Gpu, ceil_div, elements, loop, registers, scratch
from .operand import Operand
from .vectors import LANES, lane
from .work import Place, Work


class Order:
    """An order of the tokens with those that have a label first.

    Parameters
    ----------
    gpu : Gpu
        The target's processor.
    h : Buffer
        ``(T, H)`` float32, the input of the head; T is static.
    labels : Buffer
        ``(T,)`` int32, negative where a token carries no loss.

    Attributes
    ----------
    extent, padded : int
        T, and the next multiple of four.
    count : Buffer
        ``(1,)`` int32, the tokens with a label.
    order : Buffer
        ``(padded,)`` int32, where a token stands in `h`; a permutation of its first `extent`.
    label : Buffer
        ``(padded,)`` int32, the labels in that order.
    """

    def __init__(self, gpu: Gpu, h: Buffer, labels: Buffer) -> None:
        self.gpu, self.h, self.labels = gpu, h, labels
        self.extent, self.columns = shape(h)
        self.padded = ceil_div(self.extent, LANES) * LANES
        self.count = scratch([1], "int32")
        self.order, self.label = (scratch([self.padded], "int32") for _ in range(2))

    def emit(self) -> None:
        """Emit the launch; outside of any."""
        elements(self.padded, min(self.gpu.threads, 64), self._place)

    def _place(self, token: Expr) -> None:
        """Emit the place of a token: its rank among its like, behind all labels if it has none."""
        ranks = registers([2], "int32")
        zero, one = (tirx.const(n, "int32") for n in range(2))
        for i in range(2):
            T.buffer_store(ranks, zero, [i])
        with loop(self.extent) as other:
            labelled = bind(T.Select(self.labels[other] >= 0, one, zero))
            T.buffer_store(ranks, ranks[0] + labelled, [0])
            before = T.Select(other < token, labelled, zero)
            T.buffer_store(ranks, ranks[1] + before, [1])
        source = bind(T.min(token, self.extent - 1))
        label, total, rank = bind(self.labels[source]), bind(ranks[0]), bind(ranks[1])
        first = tirx.all(label >= 0, token < self.extent)
        place = bind(T.Select(first, rank, total + token - rank))
        T.buffer_store(self.order, source, [place])
        T.buffer_store(self.label, T.Select(first, label, tirx.const(-1, "int32")), [place])
        with T.If(token == 0), T.Then():
            T.buffer_store(self.count, total, [0])


class Tokens(Order):
    """The tokens with those that have a label first, and their inputs in that order, turned."""

    def __init__(self, gpu: Gpu, h: Buffer, labels: Buffer) -> None:
        super().__init__(gpu, h, labels)
        self.turned = scratch([self.columns, self.padded])

    def operand(self) -> Operand:
        """Return the inputs as a factor of a product, tokens by columns of `h`."""
        return Operand(lambda t, k: load(self.turned, k, t, lanes=LANES), along_depth=False)

    def only_active(self, work: Work, first_token: Callable[[Expr], Expr]) -> Work:
        """Return a work that is spared the groups whose first token carries no loss."""
        return _Active(work, lambda group: first_token(group) < self.count[0])

    def emit(self) -> None:
        """Emit the launches; outside of any."""
        super().emit()
        lanes = LANES if self.columns % LANES == 0 else 1

        def turn(index: Expr) -> None:
            # Neighbouring threads write neighbouring tokens.
            token, column = bind(index % self.padded), bind(index // self.padded * lanes)
            value = bind(load(self.h, self.order[token], column, lanes=lanes))
            for i in range(lanes):
                part = value if lanes == 1 else lane(value, i)
                T.buffer_store(self.turned, part, [column + i, token])

        elements(self.padded * (self.columns // lanes), self.gpu.threads, turn)


class _Active(Work):
    """Another work, of which some groups take no turns; they finish with sums of zero.

    Only what has no barriers is left out by a branch: PoCL 3.1 lets threads into wrong branches
    inside of one that follows a loop over barriers of a length known at run time.
    """

    def __init__(self, work: Work, is_active: Callable[[Expr], Expr]) -> None:
        self.work, self.is_active = work, is_active
        self.groups, self.sums = work.groups, work.sums
        self.vectors, self.halves = work.vectors, work.halves

    def turns(self, group: Expr) -> Expr:
        count = self.work.turns(group)
        count = tirx.const(count, "int32") if isinstance(count, int) else count
        return tirx.Select(self.is_active(group), count, tirx.const(0, "int32"))

    def start(self, place: Place) -> None:
        self.work.start(place)

    def turn(self, place: Place, index: Expr) -> None:
        self.work.turn(place, index)

    def finish(self, place: Place) -> None:
        if self.vectors or self.halves:
            self.work.finish(place)
        else:
            when(self.is_active(place.group), lambda: self.work.finish(place))
