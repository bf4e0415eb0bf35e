"""AdamW's moments in fewer bits: 16-bit floats, or 8-bit codes with a scale for each block.

- ``"bf16"``: the upper 16 bits of each float32.
- ``"int8"``: blocks of 256 elements, as Dettmers et al. 2022 ("8-bit Optimizers via Block-wise
  Quantization", arXiv 2110.02861), each divided by its largest magnitude and stored in a code that
  is finer where values are smaller: a small float of three bits of mantissa. The first moment has a
  sign and four bits of exponent, down to 2^-16 of the largest; the second, which is not negative,
  five, down to 2^-31, so that no element loses its divisor before what is divided.

A code is read off a float32's bits: with the largest magnitude as 1, the bits from the 20th on,
less those of the least. Rounding is random, so that it is right on average: a change of a
thousandth, as beta2 = 0.999 makes, would else be rounded away again and again. What is random is a
hash of the place, of the values and of the step's correction, so a step gives the same always.

A buffer is int32 words, of four codes or two floats each, the lowest first; after the codes stand
the blocks' float32 magnitudes by their bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from .dropout import lowbias32
from .emit import emit_inplace
from .optimizer import HYPERPARAMETERS, adamw

MOMENTS = ("f32", "bf16", "int8")
"""How moments can be stored."""
BLOCK = 256
"""Elements that share a magnitude."""
ONE = 0x3F8
"""The bits of 1.0 from the 20th on."""
LARGEST = (127, 255)
"""The codes of 1.0 of the first moment, beside its sign, and of the second."""


def moment_type(size: int, moments: str) -> relax.TensorType:
    """Return the type of the buffer of a moment of so many elements, a multiple of four."""
    if moments == "f32":
        return relax.TensorType((size,), "float32")
    words = size // 2 if moments == "bf16" else size // 4 + -(-size // BLOCK)
    return relax.TensorType((words,), "int32")


def compressed_adamw(
    bb: relax.BlockBuilder, buffers: Sequence[relax.Expr], hyper: relax.Expr, moments: str
) -> relax.Var:
    """Emit one AdamW step as :func:`adamw` does, on moments in another format.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    buffers : sequence of relax.Expr
        Parameter ``(n,)`` float32, first and second moment of :func:`moment_type`, and gradient
        ``(n,)`` float32; n is a multiple of four.
    hyper : relax.Expr
        ``(8,)`` float32.
    moments : str
        ``"bf16"`` or ``"int8"``.

    Returns
    -------
    relax.Var
        The tuple of the four buffers.
    """
    (size,) = (int(extent) for extent in buffers[0].ty.shape)
    words = int(buffers[1].ty.shape[0])
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        p = T.arg("parameter", T.buffer((size,), "float32"))
        m, v = (T.arg(name, T.buffer((words,), "int32")) for name in ("moment1", "moment2"))
        g = T.arg("gradient", T.buffer((size,), "float32"))
        h = T.arg("hyper", T.buffer((len(HYPERPARAMETERS),), "float32"))
        with T.serial(0, -(-size // BLOCK)) as block:
            _Block(size, moments, (m, v), h).emit(block, p, g)
    parameters = {"moments": moments}
    places = [0, 1, 2, 3]
    return emit_inplace(
        bb, "compressed_adamw", builder.get(), [*buffers, hyper], places, parameters
    )


def update(
    bb: relax.BlockBuilder, buffers: Sequence[relax.Expr], hyper: relax.Expr, moments: str
) -> relax.Var:
    """Emit one AdamW step on moments of any of :data:`MOMENTS`, see :func:`adamw`."""
    if moments == "f32":
        return adamw(bb, buffers, hyper)
    return compressed_adamw(bb, buffers, hyper, moments)


class _Block:
    """The step of one block, element by element."""

    def __init__(self, size: int, moments: str, buffers: Sequence[T.Buffer], h: T.Buffer) -> None:
        self.size, self.codes, self.buffers, self.hyper = size, moments == "int8", buffers, h
        self.new = [T.alloc_buffer((BLOCK,), "float32") for _ in buffers]
        self.top = [T.alloc_buffer((1,), "float32") for _ in buffers]

    def emit(self, block: tirx.Var, p: T.Buffer, g: T.Buffer) -> None:
        """Emit the step."""
        rate, beta1, beta2, epsilon, decay, clip, correction1, correction2 = (
            self.hyper[i] for i in range(len(HYPERPARAMETERS))
        )
        betas, new, zero = (beta1, beta2), self.new, tirx.const(0.0, "float32")
        first = block * BLOCK
        count = tirx.min(BLOCK, self.size - first)
        for top in self.top:
            T.buffer_store(top, zero, [0])
        with T.serial(0, count) as i:
            scaled = clip * g[first + i]
            for which, term in enumerate((scaled, scaled * scaled)):
                old = self._read(which, first + i, block)
                value = betas[which] * old + (1.0 - betas[which]) * term
                T.buffer_store(new[which], value, [i])
                top = self.top[which]
                T.buffer_store(top, tirx.max(top[0], tirx.abs(new[which][i])), [0])
            root = tirx.sqrt(new[1][i] / correction2) + epsilon
            step = rate * (new[0][i] / correction1) / root
            T.buffer_store(p, p[first + i] - rate * decay * p[first + i] - step, [first + i])
            T.buffer_store(g, zero, [first + i])
        per_word = 4 if self.codes else 2
        with T.serial(0, count // per_word) as w:
            for which, buffer in enumerate(self.buffers):
                word = tirx.const(0, "int32")
                for c in range(per_word):
                    i = w * per_word + c
                    stored = self._stored(which, i, first + i, correction2)
                    word = word | (stored << (32 // per_word * c))
                T.buffer_store(buffer, word, [block * (BLOCK // per_word) + w])
        if self.codes:
            for buffer, top in zip(self.buffers, self.top, strict=True):
                bits = tirx.reinterpret("int32", top[0])
                T.buffer_store(buffer, bits, [self.size // 4 + block])

    def _read(self, which: int, place: tirx.PrimExpr, block: tirx.Var) -> tirx.PrimExpr:
        """Return an element as it was."""
        buffer, zero = self.buffers[which], tirx.const(0, "int32")
        if not self.codes:
            bits = (buffer[place // 2] >> tirx.Cast("int32", 16 * (place % 2))) << 16
            return tirx.reinterpret("float32", bits)
        byte = (buffer[place // 4] >> tirx.Cast("int32", 8 * (place % 4))) & 255
        code = byte & LARGEST[which]
        bits = (code + (ONE - LARGEST[which])) << 20
        # The sign of the first moment is the byte's eighth bit.
        bits = bits | ((byte & (255 - LARGEST[which])) << 24)
        top = tirx.reinterpret("float32", buffer[self.size // 4 + block])
        value = tirx.reinterpret("float32", bits) * top
        return tirx.Select(code == zero, tirx.const(0.0, "float32"), value)

    def _stored(
        self, which: int, i: tirx.PrimExpr, place: tirx.PrimExpr, correction: tirx.PrimExpr
    ) -> tirx.PrimExpr:
        """Return what is stored of a new element."""
        bits = [tirx.reinterpret("uint32", new[i]) for new in self.new]
        key = bits[0] ^ (bits[1] << tirx.const(1, "uint32"))
        key = key ^ tirx.reinterpret("uint32", correction) ^ tirx.Cast("uint32", place)
        mixed = tirx.Cast("int32", lowbias32(key) >> tirx.const(16 * which, "uint32"))
        random = mixed & 0xFFFF
        value = self.new[which][i]
        if not self.codes:
            rounded = tirx.reinterpret("int32", value) + random
            return (rounded >> 16) & 0xFFFF
        top = self.top[which][0]
        ratio = tirx.abs(value) / tirx.max(top, tirx.const(1e-38, "float32"))
        found = ((tirx.reinterpret("int32", ratio) + (random << 4)) >> 20) - (ONE - LARGEST[which])
        code = tirx.max(found, 0)
        if which == 1:
            return code
        sign = tirx.Select(value < tirx.const(0.0, "float32"), tirx.const(128, "int32"), 0)
        return code | sign
