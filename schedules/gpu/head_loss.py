"""Cross-entropy of a large vocabulary and its gradient, over a bounded number of logits at a time.

Logits stand transposed, a row of the vocabulary by the tokens that carry loss, so that neighbouring
threads have neighbouring tokens and both matrix products read them as they are stored:

    1. the tokens with a label come first; their inputs are transposed
    2. logits of a chunk of the vocabulary = table h^T
    3. of each few rows: maximum and sum of exponentials of each token
    4. these combined: the loss, the maximum m and the factor over the sum
    5. the logits become their gradient times the row's scale, in place
    6. dh = dlogits^T table

With one chunk its logits are kept from 2 to 5; else 2 runs again for each chunk before 5 and 6.
Every sum has a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind, shape, static, when
from .elements import constant, load, over_rows, splat, store
from .gemm import Product
from .head_chunks import Chunks
from .head_statistics import Statistics
from .head_tokens import Tokens
from .kernel import Gpu, build, scratch
from .operand import Operand, store_vector
from .table import by_columns, by_rows, is_readable
from .vectors import LANES, four, lane
from .work import Work, launch_works


def chunks(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out `head_loss` and `head_loss_forward` of a static number of tokens."""
    gpu, scaled = Gpu(target), int(parameters["scaled"])
    if not is_readable(gpu, function.params[1]) or static(function.params[0].shape[0]) is None:
        return None

    def body(h: Buffer, table: Buffer, labels: Buffer, *rest: Buffer) -> None:
        scale = rest[0] if scaled else None
        _HeadLoss(gpu, h, table, labels, scale, rest[scaled:]).emit()

    return build(function, body)


class _HeadLoss:
    """The buffers and the extents of the kernel.

    Parameters
    ----------
    gpu : Gpu
        The target's processor.
    h, table, labels : Buffer
        As in `models/kernels/head.py`.
    scale : Buffer or None
        Of the table's rows.
    rest : tuple of Buffer
        ``(loss,)``, or ``(inverse_count, loss, dh)`` with the gradient.
    """

    def __init__(
        self,
        gpu: Gpu,
        h: Buffer,
        table: Buffer,
        labels: Buffer,
        scale: Buffer | None,
        rest: tuple[Buffer, ...],
    ) -> None:
        self.gpu, self.table, self.scale = gpu, table, scale
        self.factor: Buffer | None = rest[0] if len(rest) == 3 else None
        self.dh: Buffer | None = rest[2] if len(rest) == 3 else None
        self.loss = rest[-2] if len(rest) == 3 else rest[0]
        self.vocabulary, self.columns = shape(table)
        self.tokens = Tokens(gpu, h, labels)
        self.chunks = Chunks.plan(self.vocabulary, self.tokens.padded)
        self.logits = scratch([self.chunks.size, self.tokens.padded])
        self.statistics = Statistics(gpu, self.tokens, self.chunks, self.logits)

    def emit(self) -> None:
        """Emit the kernel."""
        self.tokens.emit()

        def measure(first: Expr, index: Expr) -> None:
            self._multiply(first)
            self.statistics.measure(first, index)

        self.chunks.each(measure)
        self.statistics.combine(self.factor, self.loss, self.dh)
        if self.dh is None:
            return
        product = self._gradient_product()
        # Every chunk's product is laid out as the first one's, whose parts they all use.
        layout = product(0)
        parts = layout.parts() if layout.splits > 1 else None

        def differentiate(first: Expr, index: Expr) -> None:
            if self.chunks.count > 1:
                self._multiply(first)
            self._differentiate(first)
            self._accumulate(product(first, layout), parts, index)

        self.chunks.each(differentiate)

    def _multiply(self, first: Expr) -> None:
        """Emit the logits of the chunk that begins at row `first`."""
        left = by_rows(self.gpu, self.table, lambda row: self.chunks.row(row + first))
        size = self.tokens.padded
        product = Product(
            self.gpu, self.chunks.size, size, self.columns, left, self.tokens.operand(), splits=1
        )
        down, across = product.tiles

        def finish(row: Expr, token: Expr, value: Expr) -> None:
            if self.scale is not None:
                value = value * splat(self.scale[self.chunks.row(row + first)], LANES)
            active = token < self.tokens.count[0]
            when(active, lambda: store_vector(self.logits, value, row, token))

        def first_token(group: Expr) -> Expr:
            return group // down % across * product.tile.columns

        launch_works([self.tokens.only_active(product.work(finish), first_token)])

    def _differentiate(self, first: Expr) -> None:
        """Emit ``scale factor (e^(logit - m) / sum - [row = label])``, over the logits."""
        factor, statistics = self.factor, self.statistics
        assert factor is not None

        def element(row: Expr, token: Expr, lanes: int) -> None:
            def emit() -> None:
                value = load(self.logits, row, token, lanes=LANES)
                peak = load(statistics.peak, token, lanes=LANES)
                share = T.exp(value - peak) * load(statistics.mean, token, lanes=LANES)
                labels = bind(load(self.tokens.label, token, lanes=LANES))
                whole, zero = bind(factor[0]), constant(0.0, 1)
                hits = [T.Select(lane(labels, i) == row + first, whole, zero) for i in range(LANES)]
                share = share - four(hits)
                if self.scale is not None:
                    share = share * splat(self.scale[self.chunks.row(row + first)], LANES)
                share = self.chunks.only(row + first, share)
                store(self.logits, share, row, token)

            when(token < self.tokens.count[0], emit)

        over_rows(self.gpu, self.chunks.size, self.tokens.padded, element)

    def _gradient_product(self) -> Callable[..., Product]:
        """Return what makes the product of a chunk's ``dlogits^T`` and its rows of the table.

        It takes the chunk's first row and, for all but the first product, the one to be like.
        """

        def fetch(token: Expr, row: Expr) -> Expr:
            return load(self.logits, row, token, lanes=LANES)

        left = Operand(fetch, along_depth=False)

        def product(first: Expr, like: Product | None = None) -> Product:
            right = by_columns(self.gpu, self.table, lambda row: self.chunks.row(row + first))
            tokens, rows = self.tokens.padded, self.chunks.size
            size = tokens, self.columns, rows
            splits, tile = (like.splits, like.tile) if like else (None, None)
            return Product(self.gpu, *size, left, right, splits, tile)

        return product

    def _accumulate(self, product: Product, parts: Buffer | None, index: Expr) -> None:
        """Emit a chunk's product and its addition to what earlier chunks left in `dh`."""
        dh, tokens = self.dh, self.tokens
        assert dh is not None

        def finish(t: Expr, column: Expr, value: Expr) -> None:
            def put() -> None:
                source = bind(tokens.order[t])
                total = value
                if self.chunks.count > 1:
                    lanes = LANES if self.columns % LANES == 0 else 1
                    before = load(dh, source, column, lanes=lanes)
                    total = T.if_then_else(index == 0, value, value + before)
                store_vector(dh, total, source, column)

            when(t < tokens.count[0], put)

        def first_token(group: Expr) -> Expr:
            return group % product.tiles[0] * product.tile.rows

        def launch_active(work: Work) -> None:
            launch_works([tokens.only_active(work, first_token)])

        if parts is None:
            launch_active(product.work(finish))
        else:
            launch_active(product.partial_work(product.keep(parts)))
            launch_works([product.reduction(parts, finish)])
