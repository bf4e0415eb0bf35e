"""The inference side: new tokens over a key and value cache, the whole model in one function.

``prefill`` takes any number of tokens of any sequences; ``decode`` is the same function for one
token, with kernels of its own: few, since each costs more to start than to run.
"""

from __future__ import annotations

from typing import Any

from tvm import relax, tirx

from ..config import ModelConfig
from ..kernels import KV_CACHES, cached_attention, decode_attention, grow_cache, logits
from ..lora import LoraOptions, linear_groups
from .layer import (
    Dimension,
    Ends,
    Formats,
    attention_shape,
    decoder_layer,
    layer_tensors,
    rope_tables,
    rope_width,
    rotated,
    tuple_items,
)
from .projections import FusedProjections, LoraUse, Projections


def add_inference(
    bb: relax.BlockBuilder, config: ModelConfig, lora: LoraOptions, formats: Formats
) -> None:
    """Add ``prefill`` and ``decode``, and what goes with them.

    Parameters of both, in order: ``tokens, sequence, position (n,)`` int32; ``select (s,)`` int32,
    the tokens whose logits are wanted; ``rope (M, D)``, with local layers ``(M, 2 D)``; the tensors
    outside the layers; ``layers``,
    the tuple of the layers' tensors; ``adapters``, for each layer the tuple ``A, B`` of each
    adapted group with any rank, their scale folded into B; ``caches``, for each layer the tuple of
    :meth:`CacheFormat.fields`, updated in place. They return ``(s, V)`` float32 logits.
    ``rope_cache(shape (M,))`` makes the table. ``grow_cache(*old, *new)`` copies a layer's cache to
    the beginning of a larger one.
    """
    _add(bb, "prefill", tirx.Var("n", "int64"), tirx.Var("s", "int64"), config, lora, formats)
    _add(bb, "decode", 1, 1, config, lora, formats)
    capacity = tirx.Var("m", "int64")
    size = relax.Var("size", relax.ShapeType([capacity]))
    with bb.function("rope_cache", [size]):
        with bb.dataflow():
            out = bb.emit_output(rope_tables(bb, config, capacity))
        bb.emit_func_output(out)
    _add_growth(bb, config, formats)


def _add_growth(bb: relax.BlockBuilder, config: ModelConfig, formats: Formats) -> None:
    form, heads = KV_CACHES[formats.kv_cache], attention_shape(config)
    sequences, held, room = (tirx.Var(name, "int64") for name in ("b", "m", "r"))
    old, new = (
        [
            relax.Var(f"{prefix}_{name}", kind)
            for name, kind in form.fields(heads, sequences, extent).items()
        ]
        for prefix, extent in (("old", held), ("new", room))
    )
    with bb.function("grow_cache", [*old, *new]):
        bb.emit_func_output(grow_cache(bb, old, new, form, heads))


def _add(
    bb: relax.BlockBuilder,
    name: str,
    count: Dimension,
    selected: Dimension,
    config: ModelConfig,
    lora: LoraOptions,
    formats: Formats,
) -> None:
    projections = FusedProjections if count == 1 else Projections
    attention = decode_attention if count == 1 else cached_attention
    capacity, sequences = tirx.Var("m", "int64"), tirx.Var("b", "int64")
    specs, ends = layer_tensors(config, formats.packing), Ends(config, formats.head)
    heads, depth = attention_shape(config), config.num_layers
    factor_types, factor_names = adapter_type(config, lora)

    def indices(name: str, length: Dimension) -> relax.Var:
        return relax.Var(name, relax.TensorType((length,), "int32"))

    tokens, sequence, position = (indices(n, count) for n in ("tokens", "sequence", "position"))
    select = indices("select", selected)
    rope = relax.Var("rope", relax.TensorType((capacity, rope_width(config)), "float32"))
    layers = relax.Var(
        "layers", relax.TupleType([relax.TupleType([s.type for s in specs])] * depth)
    )
    adapters = relax.Var("adapters", relax.TupleType([factor_types] * depth))
    fields = KV_CACHES[formats.kv_cache].fields(heads, sequences, capacity)
    stored_types = relax.TupleType(list(fields.values()))
    caches = relax.Var("caches", relax.TupleType([stored_types] * depth))
    model = [rope, *ends.parameters, layers, adapters, caches]
    with bb.function(name, [tokens, sequence, position, select, *model]):
        with bb.dataflow():
            x = ends.embed(bb, tokens)
            for i in range(depth):
                item = relax.TupleGetItem
                weights = tuple_items(bb, bb.emit(item(layers, i)), [s.name for s in specs])
                factors = tuple_items(bb, bb.emit(item(adapters, i)), factor_names)
                stored = tuple_items(bb, bb.emit(item(caches, i)), list(fields))
                groups = dict.fromkeys(n.rsplit(".", 1)[0] for n in factor_names)
                use = LoraUse(
                    lora.modules, {g: (factors[f"{g}.a"], factors[f"{g}.b"]) for g in groups}, 1.0
                )
                project = projections(bb, config, weights, use, formats.packing)
                cache = (list(stored.values()), heads)

                def attend(
                    qkv: relax.Var,
                    cache: tuple[Any, ...] = cache,
                    weights: dict[str, relax.Expr] = weights,
                ) -> relax.Var:
                    at = rotated(bb, config, weights, qkv, rope, lambda: position)
                    return attention(bb, at.qkv, sequence, position, at.rope, *cache)[0]

                x = decoder_layer(project, x, attend)
            chosen = bb.emit(relax.op.take(x, select, axis=0, mode="clip")) if count != 1 else x
            out = bb.emit_output(logits(bb, ends.normalised(bb, chosen), *ends.head))
        bb.emit_func_output(out)


def adapter_type(config: ModelConfig, lora: LoraOptions) -> tuple[relax.TupleType, list[str]]:
    """Return the type of one layer's adapter factors, any rank, and their names in order."""
    rank = tirx.Var("r", "int64")
    fields, names = [], []
    for group in linear_groups(config, lora.modules):
        if group.adapters:
            fields += [
                relax.TensorType((group.adapters, rank, group.inputs), "float32"),
                relax.TensorType((rank, group.adapted_rows), "float32"),
            ]
            names += [f"{group.name}.a", f"{group.name}.b"]
    return relax.TupleType(fields), names
