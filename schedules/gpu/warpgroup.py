"""Hopper's warpgroup products: what 128 threads ask of the tensor cores, which work meanwhile.

The left factor is in the threads' registers, the right one in shared memory, where a copy engine
brings it in the order that the products need. Both run beside the threads: a copy is asked for,
and a barrier in shared memory tells when its bytes have arrived; products are asked for, closed as
a group, and later all but the last few groups are waited for (PTX ISA, "Asynchronous warpgroup
level matrix instructions", "cp.async.bulk" and "mbarrier"). Copies of vectors by the threads would
need a fence before each product, which waits for all that are under way. The functions named here
are in `compiler/cuda/warpgroup.py`.

A product of 64 rows takes a step of 32 bytes of the depth. Its left factor is four words of each
thread: with ``q = thread % 4`` and ``g = thread / 4 % 8``, the bytes from ``4 q`` on of the rows g
and g + 8, then of both 16 bytes further; rows of a warp begin at 16 times its place among the
four. Its sums are, of every eight columns, ``2 q`` and ``2 q + 1`` of the row g, then of g + 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr

THREADS = 128
"""Of a warpgroup."""
ROWS = 64
"""Rows of a product."""
STEP = 32
"""Bytes of the depth of a product."""
LINE = 128
"""Bytes of a row of the right factor in shared memory: four steps."""
ATOM = 1024
"""Bytes of eight such rows, whose 16-byte pieces change places among each other so that a column of
pieces lies in different banks: piece c of row r at ``c ^ (r % 8)``. Their first byte must lie at a
multiple of this."""
ROWS_OF_ATOM = ATOM // LINE
BLOCK = 64
"""Tokens that a copy brings: small copies wait for each other."""
WORD, PIECE = 4, 4
"""Bytes of a word, and words of a piece."""


def _call(name: str, *arguments: Any) -> None:
    T.evaluate(T.call_extern("int32", f"fabric_warpgroup_{name}", *arguments))


def open_barrier(memory: Buffer, place: Expr) -> None:
    """Make 8 bytes of shared memory a barrier that waits for copies; a thread does it for all."""
    _call("open", T.address_of(memory[place]))


def expect(memory: Buffer, place: Expr, size: Expr) -> None:
    """Let a barrier's next phase end when so many bytes have arrived."""
    _call("expect", T.address_of(memory[place]), size)


def copy_block(memory: Buffer, place: Expr, source: Buffer, index: Expr, barrier: Expr) -> None:
    """Ask for the copy of the lines of `BLOCK` tokens from device memory to shared memory.

    Both are of vectors; the barrier at the vector `barrier` counts what arrives.
    """
    addresses = [T.address_of(b[i]) for b, i in ((memory, place), (source, index))]
    _call("copy_block", *addresses, BLOCK * LINE, T.address_of(memory[barrier]))


def await_phase(memory: Buffer, place: Expr, parity: Expr) -> None:
    """Wait until a barrier's phase has ended: its phases are even and odd in turns."""
    _call("await", T.address_of(memory[place]), parity)


def begin() -> None:
    """Let the products that follow see what the threads have written to their registers."""
    _call("begin")


def close() -> None:
    """Make a group of the products asked for since the last one."""
    _call("close")


def wait(groups: int) -> None:
    """Wait until at most so many groups of products are under way."""
    _call(f"wait_{groups}")


def multiply(
    sums: Buffer, first: int, columns: int, left: Sequence[Expr], memory: Buffer, place: Expr
) -> None:
    """Ask for ``sums += left right``.

    Parameters
    ----------
    sums : Buffer
        Registers of int32 for factors of 8 bits, of float32 for those of 16.
    first : int
        The first of the ``columns / 2`` that the product adds to.
    columns : int
        Columns of the right factor: 8 to 256.
    left : sequence of PrimExpr
        Four int32 in registers, which must keep their values until the product has been waited for.
    memory : Buffer
        Shared memory of vectors of 16 bytes.
    place : PrimExpr
        The vector at which a step of the right factor begins, its columns `LINE` bytes apart.
    """
    factors = "s8" if str(sums.dtype) == "int32" else "f16"
    name = f"multiply_{factors}_{columns}"
    _call(name, sums.data, first, *left, T.address_of(memory[place]))


def line_place(token: Expr, word: Expr, words: int) -> Expr:
    """Return where in memory a token's word lies, so that a copy brings what products expect.

    Of each `BLOCK` tokens, `LINE` bytes of each lie together as in shared memory. `words` is the
    number of a token's.
    """
    line = LINE // WORD
    piece = (word % line // PIECE) ^ (token % ROWS_OF_ATOM)
    block = token // BLOCK * (words // line) + word // line
    return (block * BLOCK + token % BLOCK) * line + piece * PIECE + word % PIECE


def aligned(memory: Buffer) -> Expr:
    """Return the first vector of shared memory that lies at a multiple of `ATOM`."""
    return T.call_pure_extern("int32", "fabric_warpgroup_aligned", T.address_of(memory[0]))


def bytes_of(low: Expr, high: Expr, selector: int) -> Expr:
    """Return the word of four bytes of two words: its byte i is byte ``selector >> 4 i`` of them,
    where the low one has bytes 0 to 3."""
    return T.call_pure_extern("int32", "fabric_bytes", low, high, tirx.const(selector, "int32"))
