"""A larger cache of keys and values takes over what a smaller one holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from .attention import AttentionShape
from .emit import emit_inplace
from .kv_cache import CacheFormat, cache_arguments


def _function(form: CacheFormat, shape: AttentionShape) -> tirx.PrimFunc:
    """Return the PrimFunc of the fields of the old cache, then of the new one's."""
    batch, held, room = (tirx.Var(name, "int64") for name in ("batch", "held", "room"))
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        old = cache_arguments(form, shape, batch, held, "old_")
        new = cache_arguments(form, shape, batch, room, "new_")
        for source, target in zip(old, new, strict=True):
            extents: list[Any] = list(source.shape)
            with T.grid(*extents) as loops, T.sblock(f"copy_{source.name}"):
                at = [T.axis.spatial(e, x) for e, x in zip(extents, loops, strict=True)]
                T.buffer_store(target, source[tuple(at)], at)
    return builder.get()


def grow_cache(
    bb: relax.BlockBuilder,
    old: Sequence[relax.Expr],
    new: Sequence[relax.Expr],
    form: CacheFormat,
    shape: AttentionShape,
) -> relax.Var:
    """Emit the copy of a layer's cache to the beginning of a larger one, in place.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    old, new : sequence of relax.Expr
        The tensors of :meth:`CacheFormat.fields`, of M and of more positions.
    form : CacheFormat
        How they are stored.
    shape : AttentionShape
        The heads.

    Returns
    -------
    relax.Var
        The tuple of the new tensors; positions past the old ones are as they were.
    """
    places = list(range(len(old), 2 * len(old)))
    return emit_inplace(bb, "copy_cache", _function(form, shape), [*old, *new], places)
