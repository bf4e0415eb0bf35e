"""Logits of chosen tokens: dot products along the rows of the head, which is read once.

Neighbouring threads read a row's neighbouring 16 bytes, each for a few rows, so that what they read
of a token serves all of those. The sums of a row's threads meet in shared memory, in a fixed order.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..decisions import choose
from ..tir import Buffer, Expr, bind, branch, shape, static, when
from .kernel import Gpu, barrier, build, ceil_div, launch, loop, registers, shared
from .vectors import LANES, fours, held, lane

ACROSS = 32
"""Threads along a row, at most."""
ROWS = 4
"""Rows of a thread, by default."""
TOKENS = 4
"""Tokens of a thread, where there are several."""
BYTES = 16
"""Of a thread's load."""
VECTOR = f"float32x{LANES}"
INTEGERS = f"int32x{LANES}"


def _vectors(table: Buffer, columns: int) -> Buffer:
    """Return the table as vectors of 16 bytes."""
    rows, width = shape(table)[0], columns * (2 if str(table.dtype) == "float16" else 1)
    return T.decl_buffer([rows, width // BYTES], INTEGERS, data=table.data)


def _integers(vector: Expr) -> list[Expr]:
    """Return the 16 bytes of a vector as four float32 vectors, in order."""
    return [
        T.Cast(VECTOR, T.call_pure_extern(f"int8x{LANES}", "as_char4", lane(vector, i)))
        for i in range(LANES)
    ]


def _halves(vector: Expr) -> list[Expr]:
    """Return the 8 float16 of a vector as two float32 vectors: the even ones, then the odd ones.

    Shifting exponent and mantissa into place leaves them too small by 2 to the 112.
    """

    def splat(value: int) -> Expr:
        return T.broadcast(tirx.const(value, "int32"), LANES)

    sign = splat(-(1 << 31))
    low = ((vector & splat(0x7FFF)) << splat(13)) | ((vector << splat(16)) & sign)
    high = ((vector >> splat(3)) & splat(0x7FFF << 13)) | (vector & sign)
    factor = T.broadcast(T.float32(2.0**112), LANES)
    return [T.call_pure_extern(VECTOR, "as_float4", bits) * factor for bits in (low, high)]


def _cast_halves(vector: Expr) -> list[Expr]:
    """Return the 8 float16 of a vector as two float32 vectors, one after the other."""
    return [
        T.Cast(VECTOR, T.reinterpret(f"float16x{LANES}", tirx.Shuffle([vector], [i, i + 1])))
        for i in (0, 2)
    ]


class _Logits:
    """One launch over all rows for every few tokens."""

    def __init__(self, gpu: Gpu, h: Buffer, table: Buffer, scale: Buffer | None, out: Buffer):
        self.h, self.table, self.scale, self.out = h, table, scale, out
        self.tokens, self.columns = shape(h)
        self.half = str(table.dtype) == "float16"
        self.unpack = (_cast_halves if gpu.widens else _halves) if self.half else _integers
        self.units = self.columns // (BYTES // 2 if self.half else BYTES)
        self.across = next((n for n in (32, 16, 8) if self.units % n == 0), ACROSS)
        counts = [count for count in (64, 128, 256) if count <= gpu.threads]
        self.threads = choose("threads", counts or [gpu.threads], gpu.threads)
        self.groups = self.threads // self.across
        assert gpu.target.limits is not None
        room = gpu.target.limits.shared_bytes // (4 * TOKENS * self.groups * (self.across + 1))
        each = [count for count in (1, 2, ROWS, 8) if count == ROWS or count <= room]
        self.each = choose("rows of a thread", each, ROWS)
        self.rows = shape(table)[0]

    def emit(self, height: int) -> None:
        """Emit the launch, with `height` tokens for each thread."""
        per_group = self.groups * self.each
        grid = [ceil_div(self.rows, per_group), ceil_div(self.tokens, height)]
        with launch(grid, [self.threads]) as (block, down, thread):
            side, group = bind(thread % self.across), bind(thread // self.across)
            first = bind(block * per_group)
            row = [
                bind(tirx.min(first + r * self.groups + group, self.rows - 1))
                for r in range(self.each)
            ]
            token = [bind(tirx.min(down * height + t, self.tokens - 1)) for t in range(height)]
            sums = registers([self.each * height], VECTOR)
            for i in range(self.each * height):
                T.buffer_store(sums, T.broadcast(T.float32(0.0), LANES), [i])
            self._multiply(side, row, token, sums)
            self._finish(thread, side, group, first, down * height, sums)

    def _multiply(self, side: Expr, row: list[Expr], token: list[Expr], sums: Buffer) -> None:
        h, table, height = fours(self.h), _vectors(self.table, self.columns), len(token)

        def step(unit: Expr) -> None:
            words = [bind(table[r, unit]) for r in row]
            values = [self._values(h, t, unit) for t in token]
            for r, word in enumerate(words):
                weights = [held(w) for w in self.unpack(word)]
                for t in range(height):
                    at = r * height + t
                    total = sums[at]
                    for weight, value in zip(weights, values[t], strict=True):
                        total = total + weight * value
                    T.buffer_store(sums, total, [at])

        with loop(self.units // self.across) as index:
            step(bind(index * self.across + side))
        if self.units % self.across:
            rest = bind(self.units // self.across * self.across + side)
            when(rest < self.units, lambda: step(rest))

    def _values(self, h: Buffer, token: Expr, unit: Expr) -> list[Expr]:
        """Return a token's float32 vectors as the table's vectors are unpacked."""
        count = 2 if self.half else LANES
        found = [bind(h[token, unit * count + i]) for i in range(count)]
        if self.unpack is not _halves:
            return found
        elements = [lane(v, i) for v in found for i in range(LANES)]
        return [
            held(T.call_pure_extern(VECTOR, "(float4)", *elements[parity::2])) for parity in (0, 1)
        ]

    def _finish(
        self, thread: Expr, side: Expr, group: Expr, first: Expr, token: Expr, sums: Buffer
    ) -> None:
        """Emit the sums over a row's threads, the scale and the store."""
        count, pitch = int(sums.shape[0]), self.across + 1
        height = count // self.each
        # A row's partial sums begin at a bank of their own.
        memory = shared([count * self.groups * pitch])
        for i in range(count):
            total = (lane(sums[i], 0) + lane(sums[i], 1)) + (lane(sums[i], 2) + lane(sums[i], 3))
            T.buffer_store(memory, total, [(i * self.groups + group) * pitch + side])
        barrier()
        outputs = count * self.groups

        def put(index: Expr) -> None:
            t, local = bind(index % height), bind(index // height)
            begin = bind(
                ((local // self.groups * height + t) * self.groups + local % self.groups) * pitch
            )
            total = memory[begin]
            for i in range(1, self.across):
                total = total + memory[begin + i]
            row, place = bind(first + local), bind(token + t)

            def save() -> None:
                value = total if self.scale is None else total * self.scale[row]
                T.buffer_store(self.out, value, [place, row])

            when(tirx.all(row < self.rows, place < self.tokens), save)

        for begin in range(0, outputs, self.threads):
            index = bind(begin + thread)
            if begin + self.threads <= outputs:
                put(index)
            else:
                when(index < outputs, partial(put, index))


def by_rows(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out `logits`; None where a row is no multiple of 16 elements, or float16 is unknown."""
    gpu = Gpu(target)
    columns = static(function.params[0].shape[1])
    half = str(function.params[1].dtype) == "float16"
    if columns is None or columns % BYTES or (half and "fp16" not in target.features):
        return None

    def body(h: Buffer, table: Buffer, *rest: Buffer) -> None:
        *scale, out = rest
        kernel = _Logits(gpu, h, table, scale[0] if scale else None, out)
        branch(kernel.tokens == 1, lambda: kernel.emit(1), lambda: kernel.emit(TOKENS))

    return build(function, body)
