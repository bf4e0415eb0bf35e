"""The AdamW step on moments in fewer bits: block by block, twice over each."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..moments import (
    BLOCK,
    TINY,
    from_code,
    from_half,
    has_codes,
    random_bits,
    to_code,
    to_half,
)
from ..tir import (
    Buffer,
    Expr,
    bind,
    build,
    constants,
    horizontal,
    load,
    loop,
    shape,
    splat,
    static,
    store,
)
from .dropout import lowbias32
from .isa import Isa
from .loops import ceil_div, over_rows


def adamw(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out the step; None where blocks would end within a vector."""
    lanes, codes = Isa(target).lanes, has_codes(parameters)
    size = static(function.params[0].shape[0])
    if size is None or size % lanes:
        return None

    def body(p: Buffer, m: Buffer, v: Buffer, g: Buffer, hyper: Buffer) -> None:
        step = _Step(size, lanes, codes, (m, v), hyper)

        def block(index: Expr) -> None:
            first = bind(index * BLOCK)
            count = BLOCK if size % BLOCK == 0 else bind(T.min(T.int64(BLOCK), size - first))
            step.emit(index, first, count, p, g)

        over_rows(ceil_div(shape(p)[0], BLOCK), BLOCK, block)

    return build(function, body)


class _Step:
    """The step of a block; `stored` are the moments as their elements, `tops` their magnitudes."""

    def __init__(
        self, size: int, lanes: int, codes: bool, moments: tuple[Buffer, Buffer], hyper: Buffer
    ) -> None:
        self.size, self.lanes, self.codes = size, lanes, codes
        self.hyper = [bind(hyper[i]) for i in range(8)]
        dtype, per_word = ("uint8", 4) if codes else ("uint16", 2)
        self.dtype = dtype
        self.stored = [
            T.decl_buffer((shape(b)[0] * per_word,), dtype, data=b.data) for b in moments
        ]
        self.tops = [T.decl_buffer(shape(b), "float32", data=b.data) for b in moments]

    def emit(self, index: Expr, first: Expr, count: Expr, p: Buffer, g: Buffer) -> None:
        """Emit the step of the block `index`, whose elements begin at `first`."""
        lanes, zero = self.lanes, splat(0.0, self.lanes)
        rate, beta1, beta2, epsilon, decay, scale, correction1, correction2 = self.hyper
        one = T.float32(1.0)
        kept, rates = bind(one - rate * decay), bind(rate / correction1)
        unbias, betas = bind(one / correction2), (beta1, beta2)
        rest = [bind(one - beta) for beta in betas]
        new = [T.alloc_buffer((BLOCK,), "float32") for _ in betas]
        top = [T.alloc_buffer((lanes,), "float32") for _ in betas]
        place = self.size // 4 + index
        old_tops = [bind(tops[place]) if self.codes else one for tops in self.tops]
        for buffer in top:
            store(buffer, zero, 0)
        with loop(count // lanes) as vector:
            i = bind(vector * lanes)
            at = bind(first + i)
            gradient = bind(splat(scale, lanes) * load(g, at, lanes=lanes))
            values = []
            for w, term in enumerate((gradient, bind(gradient * gradient))):
                old = self._read(w, at, old_tops[w])
                value = bind(splat(betas[w], lanes) * old + splat(rest[w], lanes) * term)
                store(new[w], value, i)
                store(top[w], tirx.max(load(top[w], 0, lanes=lanes), tirx.abs(value)), 0)
                values.append(value)
            root = T.sqrt(values[1] * splat(unbias, lanes)) + splat(epsilon, lanes)
            moved = splat(rates, lanes) * values[0] / root
            store(p, splat(kept, lanes) * load(p, at, lanes=lanes) - moved, at)
            store(g, zero, at)
        tops = []
        if self.codes:
            for w in range(2):
                most = bind(horizontal(bind(load(top[w], 0, lanes=lanes)), tirx.max))
                store(self.tops[w], most, place)
                tops.append(bind(tirx.max(most, T.float32(TINY))))
        with loop(count // lanes) as vector:
            i = bind(vector * lanes)
            self._write(first + i, [bind(load(b, i, lanes=lanes)) for b in new], tops)

    def _read(self, which: int, at: Expr, top: Expr) -> Expr:
        stored = load(self.stored[which], at, lanes=self.lanes)
        bits = T.cast(stored, f"int32x{self.lanes}")
        return from_code(bits, which, top) if self.codes else bind(from_half(bits))

    def _write(self, at: Expr, values: list[Expr], tops: list[Expr]) -> None:
        lanes = self.lanes
        places = splat(T.cast(at, "uint32"), lanes) + constants(list(range(lanes)), "uint32")
        random = random_bits(
            (values[0], values[1]), places, self.hyper[7], lambda x: lowbias32(x, lanes)
        )
        for w, value in enumerate(values):
            if self.codes:
                bits = to_code(value, w, tops[w], random[w])
            else:
                bits = to_half(value, random[w])
            store(self.stored[w], T.cast(bits, f"{self.dtype}x{lanes}"), at)
