"""Attention of one new token over the cache, to which each head first adds its key and value."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, branch, build, int64, loop
from .append_kv import Append
from .attention_blocks import Heads
from .cached_attention import CachedAttention
from .isa import Isa

PARALLEL_WORK = 1 << 16
"""Multiplications of all scores from which on the threads are worth waking."""


def decode_attention(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out the attention of a new token; threads take key heads."""
    if int(parameters["head_dim"]) % 16:
        return None
    heads = Heads(Isa(target), parameters)

    def body(*buffers: Buffer) -> None:
        append, attention = Append(heads, *buffers[:-1]), CachedAttention(heads, *buffers)

        def each(parallel: bool) -> None:
            with loop(heads.kv_heads, parallel) as kv:
                append.token(kv, 0, T.alloc_buffer((1, heads.head_dim)))
                attention.one_token(kv, 0)

        # A short cache is not worth waking the threads.
        work: Expr = (int64(append.position[0]) + 1) * (heads.heads * heads.head_dim)
        branch(work >= PARALLEL_WORK, lambda: each(True), lambda: each(False))

    return build(function, body)
