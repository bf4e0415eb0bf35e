"""One layer at a time: what a runtime calls that holds only some of the layers.

``layer_forward`` and ``layer_vjp`` are functions of their own already; these are the rest of a
step, and of a prompt, for one layer. The kernels are those of the whole steps, so a streamed step
computes the same bits.
"""

from __future__ import annotations

from tvm import relax, tirx

from ..config import ModelConfig
from ..kernels import (
    KV_CACHES,
    accumulate,
    cached_attention,
    embed,
    logits,
    moment_type,
    sum_squares,
    update,
)
from ..lora import LoraOptions, adapter_layout
from .inference import adapter_type
from .layer import (
    Ends,
    Formats,
    HeadFormat,
    attention_shape,
    decoder_layer,
    layer_tensors,
    rope_width,
    rotated,
)
from .projections import LoraUse, Projections


def add_layer_steps(
    bb: relax.BlockBuilder, config: ModelConfig, lora: LoraOptions, formats: Formats
) -> None:
    """Add ``layer_accumulate``, ``layer_squares`` and ``layer_update``.

    ``layer_accumulate(*sums, *terms)`` adds a layer's gradients to its buffer's factors;
    ``layer_squares(gradient)`` is the ``(1,)`` squared norm; ``layer_update(adapter, moment1,
    moment2, gradient, hyper)`` is AdamW on one layer's flat buffers, after which the gradient is
    zero.
    """
    layout = adapter_layout(config, lora)
    sums, terms = (
        [
            relax.Var(f"{name}{i}", relax.TensorType(factor.shape, "float32"))
            for i, factor in enumerate(layout.factors)
        ]
        for name in ("sum", "term")
    )
    with bb.function("layer_accumulate", [*sums, *terms]):
        bb.emit_func_output(accumulate(bb, sums, terms))

    flat = relax.TensorType((layout.size,), "float32")
    gradient = relax.Var("gradient", flat)
    with bb.function("layer_squares", [gradient]):
        bb.emit_func_output(sum_squares(bb, gradient))

    moment = moment_type(layout.size, formats.moments)
    kinds = {"adapter": flat, "moment1": moment, "moment2": moment, "gradient": flat}
    buffers = [relax.Var(name, kind) for name, kind in kinds.items()]
    hyper = relax.Var("hyper", relax.TensorType((8,), "float32"))
    with bb.function("layer_update", [*buffers, hyper]):
        bb.emit_func_output(update(bb, buffers, hyper, formats.moments))


def add_row_embedding(
    bb: relax.BlockBuilder, config: ModelConfig, tokens: int, head: HeadFormat
) -> None:
    """Add ``embed_rows(tokens, table)``, ``embed`` over a table that has the tokens' rows alone.

    The table is ``(T, H)``, a row for each token of a micro-batch, with a ``(T,)`` scale behind it
    where `head` has one; ``tokens (T,)`` int32 says which row is whose.
    """
    which = relax.Var("tokens", relax.TensorType((tokens,), "int32"))
    table, *scale = (
        relax.Var(spec.name, spec.type) for spec in head.tensors("rows", tokens, config.hidden_size)
    )
    with bb.function("embed_rows", [which, table, *scale]):
        with bb.dataflow():
            out = bb.emit_output(embed(bb, which, table, scale[0] if scale else None))
        bb.emit_func_output(out)


def add_layer_prefill(
    bb: relax.BlockBuilder, config: ModelConfig, lora: LoraOptions, formats: Formats
) -> None:
    """Add ``prefill_embed``, ``prefill_layer`` and ``prefill_head``, ``prefill`` in three parts.

    ``prefill_embed(tokens, *ends)``; ``prefill_layer(x, sequence, position, rope, *weights,
    *factors, *cache)``; ``prefill_head(x, select, *ends)``, see ``prefill``.
    """
    count, selected = tirx.Var("n", "int64"), tirx.Var("s", "int64")
    _embed_function(bb, count, config, formats.head)
    _layer_function(bb, count, config, lora, formats)
    ends = Ends(config, formats.head)
    x = relax.Var("x", relax.TensorType((count, config.hidden_size), "float32"))
    select = relax.Var("select", relax.TensorType((selected,), "int32"))
    with bb.function("prefill_head", [x, select, *ends.parameters]):
        with bb.dataflow():
            chosen = bb.emit(relax.op.take(x, select, axis=0, mode="clip"))
            out = bb.emit_output(logits(bb, ends.normalised(bb, chosen), *ends.head))
        bb.emit_func_output(out)


def _embed_function(
    bb: relax.BlockBuilder, count: tirx.Var, config: ModelConfig, head: HeadFormat
) -> None:
    ends = Ends(config, head)
    tokens = relax.Var("tokens", relax.TensorType((count,), "int32"))
    with bb.function("prefill_embed", [tokens, *ends.parameters]):
        with bb.dataflow():
            out = bb.emit_output(ends.embed(bb, tokens))
        bb.emit_func_output(out)


def _layer_function(
    bb: relax.BlockBuilder,
    count: tirx.Var,
    config: ModelConfig,
    lora: LoraOptions,
    formats: Formats,
) -> None:
    capacity, sequences = tirx.Var("m", "int64"), tirx.Var("b", "int64")
    x = relax.Var("x", relax.TensorType((count, config.hidden_size), "float32"))
    sequence, position = (
        relax.Var(name, relax.TensorType((count,), "int32")) for name in ("sequence", "position")
    )
    rope = relax.Var("rope", relax.TensorType((capacity, rope_width(config)), "float32"))
    weights = {
        spec.name: relax.Var(spec.name, spec.type)
        for spec in layer_tensors(config, formats.packing)
    }
    factor_types, names = adapter_type(config, lora)
    factors = {
        name: relax.Var(name.replace(".", "_"), kind)
        for name, kind in zip(names, factor_types.fields, strict=True)
    }
    heads = attention_shape(config)
    fields = KV_CACHES[formats.kv_cache].fields(heads, sequences, capacity)
    cache = [relax.Var(name, kind) for name, kind in fields.items()]
    groups = dict.fromkeys(name.rsplit(".", 1)[0] for name in names)
    use = LoraUse(lora.modules, {g: (factors[f"{g}.a"], factors[f"{g}.b"]) for g in groups}, 1.0)
    parameters = [x, sequence, position, rope, *weights.values(), *factors.values(), *cache]

    def attend(qkv: relax.Var) -> relax.Var:
        at = rotated(bb, config, weights, qkv, rope, lambda: position)
        return cached_attention(bb, at.qkv, sequence, position, at.rope, cache, heads)[0]

    with bb.function("prefill_layer", parameters):
        with bb.dataflow():
            project = Projections(bb, config, dict(weights), use, formats.packing)
            out = bb.emit_output(decoder_layer(project, x, attend))
        bb.emit_func_output(out)
