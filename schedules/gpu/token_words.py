"""Values of tokens as words of four bytes: how they are rounded, and where the words lie."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..ternary import Packing
from ..tir import Buffer, Expr, bind, lanes_of, shape
from .vectors import LANES, fours, held, lane

EPSILON = 1e-5
"""Smallest absmax of a token."""
LEVELS = 127.0
Order = Callable[[Expr, Expr, int], Expr]
"""``order(token, word, words)`` returns where a word of a token, one of so many, goes in memory."""


def divide(numerator: Expr, denominator: Expr) -> Expr:
    """Return the correctly rounded quotient of two normal float32, which ``/`` need not be.

    Newton's steps after Markstein 1990 ("Computation of elementary functions on the IBM RISC
    System/6000 processor"); the quotient decides to which integer a value is rounded.
    """

    def fma(a: Expr, b: Expr, c: Expr) -> Expr:
        return held(T.call_pure_extern("float32", "fma", a, b, c))

    minus = -denominator
    inverse = held(T.float32(1.0) / denominator)
    inverse = fma(fma(minus, inverse, T.float32(1.0)), inverse, inverse)
    quotient = held(numerator * inverse)
    return fma(fma(minus, quotient, numerator), inverse, quotient)


def bound_of(absmax: Expr) -> Expr:
    """Return what a token's largest magnitude counts as."""
    return held(tirx.max(absmax, T.float32(EPSILON)))


def largest(vector: Expr) -> Expr:
    """Return the largest magnitude of a vector."""
    a, b, c, d = (T.fabs(lane(vector, i)) for i in range(LANES))
    return tirx.max(tirx.max(a, b), tirx.max(c, d))


def word(vector: Expr, factor: Expr) -> Expr:
    """Return four values times ``127 / bound`` as rounded bytes of an int32, half to even."""
    scaled = vector * T.broadcast(factor, LANES)
    octets = T.call_pure_extern(f"int8x{LANES}", "convert_char4_sat_rte", scaled)
    return held(T.call_pure_extern("int32", "as_int", octets))


def dot(left: Expr, right: Expr, total: Expr) -> Expr:
    """Return `total` plus the product of two vectors."""
    for i in range(LANES):
        total = total + lane(left, i) * lane(right, i)
    return total


def integers(words: Buffer, packing: Packing) -> Callable[..., list[Expr]]:
    """Return a function of an index in `words`, whose last axis counts the words of a matrix' row.

    It reads the tokens' integers that belong to one of these, a word for each digit.
    """
    if packing.base3:

        def each(*index: Expr) -> list[Expr]:
            first = index[-1] * packing.digits
            places = [(*index[:-1], first + f) for f in range(packing.digits)]
            return [bind(words[place]) for place in places]

        return each
    vectors = fours(words)

    def read(*index: Expr) -> list[Expr]:
        vector = bind(vectors[index])
        return [lane(vector, f) for f in range(packing.digits)]

    return read


def put_word(words: Buffer, value: Expr, token: Expr, word: Expr, order: Order | None) -> None:
    """Emit the store of a word, or a vector of words, of a token of ``(T', W)`` words or vectors.

    `word` counts words or such vectors.
    """
    if order is None:
        T.buffer_store(words, value, [token, word])
        return
    rows, count = shape(words)
    lanes = lanes_of(value)
    flat = T.decl_buffer([rows * count], str(words.dtype), data=words.data)
    T.buffer_store(flat, value, [order(token, word * lanes, count * lanes) // lanes])
