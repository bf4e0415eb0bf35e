"""The AdamW step on moments in fewer bits: a work-group for each block, four elements a thread."""

from __future__ import annotations

from functools import partial
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
from ..tir import Buffer, Expr, bind, shape, static, when
from .dropout import lowbias32
from .kernel import Gpu, build, ceil_div, launch
from .reduction import reduction
from .token_words import largest
from .vectors import LANES, four, fours, held, lane

THREADS = BLOCK // LANES


def adamw(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out the step as one launch; None where threads would share a word."""
    gpu, codes = Gpu(target), has_codes(parameters)
    size = static(function.params[0].shape[0])
    if size is None or size % LANES:
        return None

    def body(p: Buffer, m: Buffer, v: Buffer, g: Buffer, hyper: Buffer) -> None:
        with launch([ceil_div(size, BLOCK)], [THREADS]) as (block, thread):
            _Step(gpu, codes, (m, v), hyper).emit(block, thread, p, g)

    return build(function, body)


class _Step:
    """The step of a thread's four elements."""

    def __init__(
        self, gpu: Gpu, codes: bool, moments: tuple[Buffer, Buffer], hyper: Buffer
    ) -> None:
        self.gpu, self.codes, self.moments = gpu, codes, moments
        self.hyper = [bind(hyper[i]) for i in range(8)]

    def emit(self, block: Expr, thread: Expr, p: Buffer, g: Buffer) -> None:
        """Emit the step."""
        size = shape(p)[0]
        rate, beta1, beta2, epsilon, decay, scale, correction1, correction2 = self.hyper
        vectors, gradients = fours(p), fours(g)
        index = bind(block * THREADS + thread)
        inside = bind(index < size // LANES)
        at = bind(tirx.min(index, size // LANES - 1))
        scales = [size // LANES + block for _ in range(2)]
        one = T.float32(1.0)

        def every(value: Expr) -> Expr:
            return T.broadcast(bind(value), LANES)

        gradient = held(every(scale) * gradients[at])
        new = []
        for w, (beta, term) in enumerate(((beta1, gradient), (beta2, gradient * gradient))):
            top = bind(self._float(self.moments[w][scales[w]])) if self.codes else one
            old = four(self._read(w, at, top))
            new.append(held(every(beta) * old + every(one - beta) * term))
        tops = [one, one]
        if self.codes:
            # The last elements again where there are no more: they change no maximum.
            maxima = reduction(self.gpu, THREADS, thread, 2, combine=tirx.max)
            maxima.put([largest(value) for value in new])
            tops = [held(maxima.get(w)) for w in range(2)]

            def keep() -> None:
                for w in range(2):
                    bits = T.reinterpret("int32", tops[w])
                    T.buffer_store(self.moments[w], bits, [scales[w]])

            when(thread == 0, keep)

        def store() -> None:
            root = T.sqrt(new[1] * every(one / correction2)) + every(epsilon)
            moved = every(rate / correction1) * new[0] / root
            T.buffer_store(vectors, every(one - rate * decay) * vectors[at] - moved, [at])
            T.buffer_store(gradients, T.broadcast(T.float32(0.0), LANES), [at])
            self._write(at, new, tops)

        when(inside, store)

    @staticmethod
    def _float(word: Expr) -> Expr:
        return T.reinterpret("float32", bind(word))

    def _read(self, which: int, at: Expr, top: Expr) -> list[Expr]:
        """Return four elements as they were."""
        moment = self.moments[which]
        if self.codes:
            word = bind(moment[at])
            return [from_code((word >> (8 * c)) & 255, which, top) for c in range(LANES)]
        words = [bind(moment[at * 2 + half]) for half in range(2)]
        return [bind(from_half(words[c // 2] >> (16 * (c % 2)))) for c in range(LANES)]

    def _write(self, at: Expr, new: list[Expr], tops: list[Expr]) -> None:
        """Emit the store of four elements of both moments."""
        bounds = [bind(tirx.max(top, T.float32(TINY))) for top in tops]
        stored: list[list[Expr]] = [[], []]
        for c in range(LANES):
            values = held(lane(new[0], c)), held(lane(new[1], c))
            place = T.Cast("uint32", at * LANES + c)
            random = random_bits(values, place, self.hyper[7], lowbias32)
            for w, value in enumerate(values):
                if self.codes:
                    stored[w].append(to_code(value, w, bounds[w], random[w]))
                else:
                    stored[w].append(to_half(value, random[w]))
        for moment, codes in zip(self.moments, stored, strict=True):
            put = partial(T.buffer_store, moment)
            if self.codes:
                put(codes[0] | (codes[1] << 8) | (codes[2] << 16) | (codes[3] << 24), [at])
            else:
                for half in range(2):
                    put(codes[2 * half] | (codes[2 * half + 1] << 16), [at * 2 + half])
