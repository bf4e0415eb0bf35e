"""The adjoint of a group of ternary projections with their adapters.

The input's adjoint is one product whose right factor is unpacked from the packed weights on its way
to shared memory, so the matrix is read along the axis it is not stored for without a copy. Two
launches do everything: the first has that product's partial sums and the adapters' thin factors u
and du, the second adds the parts up, takes du A in, and has the adapters' gradients.

Where the device has float16, the product's factors are halves: the outer adjoint scaled, by a
launch of its own that has u and du, too, and the ternary weights as they are. The adapters'
products stay float32. They read a wide matrix once or twice, which would not pay for its halves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..ternary import TILE, Packing, Segment, aligned, by_segment, segments
from ..tir import Buffer, Expr, bind, lanes_of, shape, splat, static
from .gemm import Finish, Product, store_vector
from .gemm_tile import Tile, split_count
from .halves import Halves
from .kernel import Gpu, build, ceil_div, scratch
from .lora_gradients import FEW, Skinny, emit_gradients
from .norm import emit_norm
from .operand import HALF, HALVES, VECTOR, Operand, depth_major, row_major, shifted
from .packed import COLUMNS, Columns
from .vectors import LANES, fours
from .work import Work, launch_works

MAGIC, HALF_MAGIC = 0x4B000000, 0x64006400
"""The bits of 2^23 as float32, and of 2^10 as float16 twice: with a code in the low bits they are
the code more."""
THIN = Tile(16, 16, 1, 4, step=64)
"""The tile of u and du, whose many steps should be few."""
THIN_DEPTH = 24 * THIN.step
"""The depth of a part of u and du at most, so that none outlasts the main product beside it."""
THROUGH = Tile(16, 32, 2, 4)
"""The tile of du A, small since each thread also adds up the main product's parts."""
OUTER = Tile(16, 64, 4, 4)
"""The tile of the adapters' gradients, whose depth is the tokens."""


def tiles(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out `bitlinear_vjp`; None where a projection is no multiple of 16 rows."""
    parts = segments(parameters)
    if not aligned(parts):
        return None
    gpu, scale = Gpu(target), float(parameters["lora_scale"])

    def body(dy: Buffer, x: Buffer, packed: Buffer, scales: Buffer, *rest: Buffer) -> None:
        matrix, columns = Columns(packed, Packing.of(parameters)), shape(x)[1]
        outer = _Outer(gpu, parts, dy, scales)
        if "epsilon" in parameters:
            normed = scratch(shape(x))
            emit_norm(gpu, x, rest[0], normed, float(parameters["epsilon"]))
            x, rest = normed, rest[1:]
        if len(rest) == 1:
            if outer.works:
                launch_works(outer.works)
            without_adapter(_straight_through(gpu, outer, matrix, columns), rest[0])
            return
        separate = len(rest) == 7
        a, b, lora_input = rest[0], rest[1], rest[2] if separate else x
        lora = Lora(gpu, parts, scale, dy, lora_input, a, b)

        def straight_through(beside: int) -> Product:
            return _straight_through(gpu, outer, matrix, columns, beside)

        with_adapter(lora, straight_through, rest[3:] if separate else rest[2:], outer.works)

    return build(function, body)


def with_adapter(
    lora: Lora,
    product: Callable[[int], Product],
    outputs: tuple[Buffer, ...],
    before: Sequence[Work] = (),
) -> None:
    """Emit the launches of dx and of the adapters' gradients.

    Parameters
    ----------
    lora : Lora
        The adapters' products.
    product : callable
        Returns dx through the frozen weights, beside so many work-groups of its launch.
    outputs : tuple of Buffer
        dx, dA, dB, and the adjoint of the adapters' input where it is another one.
    before : sequence of Work
        What the product needs to be done.
    """
    gpu, (dx, da, db, *through) = lora.gpu, outputs
    thin = lora.thin_works()
    if before:
        launch_works([*thin, *before])
        thin = []
    main = product(sum(static(work.groups) or 0 for work in thin))
    sums = main.parts()
    launch_works([*thin, main.partial_work(main.keep(sums))])
    if through:
        to_input = [main.reduction(sums, _store(dx)), lora.through(through[0])]
    else:
        to_input = [lora.through(dx, main, sums)]
    if gpu.shared and (static(lora.tokens) or 0) > FEW:
        launch_works(to_input)
        emit_gradients(gpu, lora.tokens, lora.skinny(da, db))
    else:
        launch_works([*to_input, *lora.gradients(da, db)])


def without_adapter(main: Product, dx: Buffer) -> None:
    """Emit the launches of dx alone."""
    if main.splits == 1:
        launch_works([main.work(_store(dx))])
        return
    sums = main.parts()
    launch_works([main.partial_work(main.keep(sums))])
    launch_works([main.reduction(sums, _store(dx))])


def _store(buffer: Buffer, first: int = 0) -> Finish:
    """Return the finish that stores the result, its columns from `first` on."""
    return lambda i, j, value: store_vector(buffer, value, i, first + j)


class _Outer:
    """The outer adjoint times the projections' scales.

    Attributes
    ----------
    operand : Operand
        The same as the left factor of a product.
    works : list of Work
        What has to be done before.
    """

    def __init__(self, gpu: Gpu, parts: list[Segment], dy: Buffer, scales: Buffer) -> None:
        self.parts, self.dy, self.scales = parts, dy, scales
        self.tokens, self.rows = shape(dy)
        self.works: list[Work] = []
        if gpu.halves:
            halves = Halves(self.tokens, self.tokens, self.rows, self._read)
            self.works, self.operand = [halves], halves.operand()
        else:
            self.operand = replace(row_major(dy), unpack=lambda v, t, n: [self._scaled(v, n)])

    def _read(self, token: Expr, v: Expr) -> Expr:
        return self._scaled(fours(self.dy)[token, v], v * LANES)

    def _scaled(self, value: Expr, n: Expr) -> Expr:
        # Projections begin with a packed tile, so one scale serves the tile that holds n.
        first = bind(n // TILE * TILE)
        scale = bind(by_segment(self.parts, first, lambda p: self.scales[p.index]))
        return value * splat(scale, LANES)


def _straight_through(
    gpu: Gpu, outer: _Outer, matrix: Columns, columns: int, beside: int = 0
) -> Product:
    """Return the product ``(dy scale) W``."""
    weights = _half_weights if gpu.halves else _weights

    def unpack(fetched: Expr, k: Expr, n: Expr) -> list[Expr]:
        word = matrix.word(fetched, k // COLUMNS)
        return [weights(word, group) for group in range(COLUMNS // LANES)]

    right = Operand(
        lambda k, n: matrix.fetch(n, k // COLUMNS),
        along_depth=False,
        width=COLUMNS,
        dtype=matrix.dtype,
        unpack=unpack,
        element=HALF if gpu.halves else "float32",
    )
    size = (outer.tokens, columns, outer.rows)
    return Product(gpu, *size, outer.operand, right, beside=beside)


def _weights(word: Expr, group: int) -> Expr:
    """Return the weights -1, 0 and 1 of columns ``4 group`` to ``4 group + 3`` of a packed word.

    The codes become floats by their bits, at a third of the cost of a conversion.
    """
    codes = T.broadcast(word, LANES) >> T.ramp(T.int32(2 * group), 8, LANES)
    bits = (codes & T.broadcast(T.int32(3), LANES)) | T.broadcast(T.int32(MAGIC), LANES)
    return T.reinterpret(VECTOR, bits) - splat(float(2**23 + 1), LANES)


def _half_weights(word: Expr, group: int) -> Expr:
    """Return the same as float16, two codes to a word on their way."""

    def both(value: int) -> Expr:
        return T.broadcast(T.int32(value), 2)

    codes = T.broadcast(word, 2) >> T.ramp(T.int32(2 * group), 16, 2)
    bits = (codes & both(3)) | ((codes & both(3 << 8)) << both(8)) | both(HALF_MAGIC)
    return T.reinterpret(HALVES, bits) - splat(tirx.const(2.0**10 + 1, HALF), LANES)


class Parts(Protocol):
    """A product whose depth is cut."""

    def total(self, parts: Buffer, row: Expr, column: Expr) -> Expr:
        """Return the sum of what its parts left in `parts`, of columns `column` on."""


class Lora:
    """The adapters' products; their factor u is ``lora_scale x A^T``, du ``lora_scale dy B^T``.

    Both are kept in a few parts of their depth, ``(parts, T, S r)``, which their readers add; in
    one part where they are asked for `whole`. With a `norm` x is what comes before it, and
    :meth:`skinny` takes each token's factor of the norm from `inverse`.
    """

    def __init__(
        self,
        gpu: Gpu,
        parts: list[Segment],
        scale: float,
        dy: Buffer,
        x: Buffer,
        a: Buffer,
        b: Buffer,
        whole: bool = False,
        norm: Buffer | None = None,
        epsilon: float = 0.0,
    ) -> None:
        self.gpu, self.scale, self.dy, self.x, self.a, self.b = gpu, scale, dy, x, a, b
        self.norm, self.epsilon = norm, epsilon
        self.adapted = [part for part in parts if part.adapter is not None]
        self.tokens, self.columns = shape(x)
        self.adapters, self.rank, _ = shape(a)
        self.thin = self.adapters * self.rank
        depths = [part.end - part.begin for part in self.adapted]
        self.u, self.du = (
            scratch([1 if whole else self._parts(d), self.tokens, self.thin])
            for d in ([self.columns], depths)
        )
        self.inverse = scratch([self.tokens]) if norm is not None else None

    def _tile(self, tile: Tile) -> Tile | None:
        """Return a tile for products through shared memory."""
        return tile if self.gpu.shared else None

    def _parts(self, depths: list[int]) -> int:
        """Return into how many parts to cut all of these depths."""
        step = THIN.step if self.gpu.shared else LANES
        count = ceil_div(max(depths), THIN_DEPTH)
        while any(split_count(ceil_div(depth, step), count) != count for depth in depths):
            count -= 1
        return count

    def thin_works(self) -> list[Work]:
        """Return the works of u and du."""
        x, dy, b = row_major(self.x), row_major(self.dy), row_major(self.b)
        a = Operand(lambda j, k: fours(self.a)[j // self.rank, j % self.rank, k // LANES])
        works = [self._thin(x, a, self.thin, self.columns, self.u, 0)]
        for part in self.adapted:
            factors = shifted(dy, depth=part.begin), shifted(b, depth=part.column)
            first = part.adapter * self.rank
            works.append(self._thin(*factors, self.rank, part.end - part.begin, self.du, first))
        return works

    def _thin(
        self, left: Operand, right: Operand, width: int, depth: int, thin: Buffer, first: int
    ) -> Work:
        """Return the work of the columns from `first` on of one thin factor."""
        count, tile = shape(thin)[0], self._tile(THIN)
        product = Product(self.gpu, self.tokens, width, depth, left, right, count, tile)

        def keep(split: Expr) -> Finish:
            def finish(t: Expr, j: Expr, value: Expr) -> None:
                scaled = value * splat(self.scale, lanes_of(value))
                store_vector(thin, scaled, split, t, first + j)

            return finish

        return product.partial_work(keep)

    def _factor(self, thin: Buffer, by_token: bool, first: int = 0) -> Operand:
        """Return a thin factor's columns from `first` on, its tokens the outer axis or depth."""
        wide = self.rank % LANES == 0
        count = shape(thin)[0]

        def fetch(outer: Expr, depth: Expr) -> Expr:
            token, column = (outer, depth) if by_token else (depth, outer)
            source, at = (thin, first + column)
            if wide:
                source, at = fours(thin), at // LANES
            total = source[0, token, at]
            for part in range(1, count):
                total = total + source[part, token, at]
            return total

        width, dtype = (LANES, VECTOR) if wide else (1, "float32")
        return Operand(fetch, along_depth=by_token, width=width, dtype=dtype)

    def through(self, dx: Buffer, main: Parts | None = None, sums: Buffer = None) -> Work:
        """Return the work of ``dx = du A``, plus a product's partial sums."""
        a = Operand(
            lambda k, j: fours(self.a)[j // self.rank, j % self.rank, k // LANES],
            along_depth=False,
        )
        du, tile = self._factor(self.du, by_token=True), self._tile(THROUGH)
        size = (self.tokens, self.columns, self.thin)

        def finish(t: Expr, k: Expr, value: Expr) -> None:
            store_vector(dx, value if main is None else value + main.total(sums, t, k), t, k)

        return Product(self.gpu, *size, du, a, 1, tile).work(finish)

    def gradients(self, da: Buffer, db: Buffer) -> list[Work]:
        """Return the works of ``dA = du^T x`` and ``dB = u^T dy``."""

        def to_a(j: Expr, k: Expr, value: Expr) -> None:
            store_vector(da, value, j // self.rank, j % self.rank, k)

        du = self._factor(self.du, by_token=False)
        works = [self._outer(du, depth_major(self.x), self.thin, self.columns, to_a)]
        for part in self.adapted:
            u = self._factor(self.u, by_token=False, first=part.adapter * self.rank)
            dy = shifted(depth_major(self.dy), outer=part.begin)
            to_b = _store(db, part.column)
            works.append(self._outer(u, dy, self.rank, part.end - part.begin, to_b))
        return works

    def skinny(self, da: Buffer, db: Buffer) -> list[Skinny]:
        """Return the same as products for :func:`emit_gradients`; columns in vectors of four."""
        x, dy = (lambda t, v: fours(self.x)[t, v]), (lambda t, v: fours(self.dy)[t, v])

        def to_a(j: Expr, v: Expr, value: Expr) -> None:
            if self.norm is not None:
                value = value * fours(self.norm)[v]
            T.buffer_store(fours(da), value, [j // self.rank, j % self.rank, v])

        size = self.thin, x, self.columns // LANES
        products = [Skinny(self.du, 0, *size, to_a, self.inverse)]
        for part in self.adapted:

            def of(t: Expr, v: Expr, first: int = part.begin // LANES) -> Expr:
                return dy(t, first + v)

            def to_b(j: Expr, v: Expr, value: Expr, first: int = part.column // LANES) -> None:
                T.buffer_store(fours(db), value, [j, first + v])

            vectors, first = (part.end - part.begin) // LANES, part.adapter * self.rank
            products.append(Skinny(self.u, first, self.rank, of, vectors, to_b))
        return products

    def _outer(self, thin: Operand, wide: Operand, rows: int, columns: int, finish: Finish) -> Work:
        """Return the work of a product over the tokens."""
        size, tile = (rows, columns, self.tokens), self._tile(OUTER)
        return Product(self.gpu, *size, thin, wide, 1, tile).work(finish)
