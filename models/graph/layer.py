"""One decoder layer, its tensors, and the two ends of the model, as Relax emitters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tvm import relax, tirx

from ..config import ModelConfig
from ..kernels import (
    AttentionShape,
    LinearGroup,
    embed,
    no_rotation,
    rms_norm,
    rope_table,
    rotate_heads,
)
from ..lora import linear_groups
from ..packing import DENSE, PACKINGS, TWO_BIT, packed_shape
from .projections import Projections

SPAN = "span"
"""The tensor of a layer by which its attention differs from other layers', see `heads.py`."""
UNLIMITED = 1 << 30
"""The window of a layer without one: more tokens than any context."""
Dimension = int | tirx.Var
Attention = Callable[[relax.Var], relax.Var]


@dataclass(frozen=True)
class TensorSpec:
    """A frozen tensor of the model as the compiled functions take it."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def type(self) -> relax.TensorType:
        """The Relax type."""
        return relax.TensorType(self.shape, self.dtype)


@dataclass(frozen=True)
class HeadFormat:
    """How embedding and head are stored: ``"f16"``, or ``"int8"`` with a float32 scale a row."""

    dtype: str

    @property
    def scaled(self) -> bool:
        """Whether a scale tensor stands beside the table."""
        return self.dtype == "int8"

    def tensors(self, name: str, rows: int, columns: int) -> list[TensorSpec]:
        """Return the specs of a table and its scale."""
        table = "int8" if self.scaled else "float16"
        specs = [TensorSpec(name, (rows, columns), table)]
        if self.scaled:
            specs.append(TensorSpec(f"{name}_scale", (rows,), "float32"))
        return specs


@dataclass(frozen=True)
class Formats:
    """How what a model and its training keep in memory is stored.

    Attributes
    ----------
    head : HeadFormat
        Embedding and head.
    packing : str
        The ternary matrices, see `models/packing.py`.
    moments : str
        AdamW's, see `models/kernels/moments.py`.
    kv_cache : str
        The cache of keys and values, see `models/kernels/kv_cache.py`.
    """

    head: HeadFormat
    packing: str = TWO_BIT.name
    moments: str = "f32"
    kv_cache: str = "f32"


def attention_shape(config: ModelConfig) -> AttentionShape:
    """Return the heads of a model."""
    return AttentionShape(config.num_heads, config.num_kv_heads, config.head_dim)


def layer_tensors(config: ModelConfig, packing: str) -> list[TensorSpec]:
    """Return the frozen tensors of one layer, in the order in which the functions take them."""
    groups = {group.name: group for group in linear_groups(config, (), packing)}

    form = PACKINGS[packing]

    def linear(group: LinearGroup) -> list[TensorSpec]:
        if group.packing == DENSE:
            return [TensorSpec(group.name, (group.rows, group.inputs // 2), "int32")]
        return [
            TensorSpec(group.name, packed_shape(group.rows, group.inputs, form), "int32"),
            TensorSpec(f"{group.name}_scale", (len(group.outputs),), "float32"),
        ]

    def norms(*names: str) -> list[TensorSpec]:
        sizes = {"query_norm": config.head_dim, "key_norm": config.head_dim}
        return [TensorSpec(n, (sizes.get(n, config.hidden_size),), "float32") for n in names]

    specs = [*norms("input_norm"), *linear(groups["qkv"])]
    if config.head_norms:
        specs += norms("query_norm", "key_norm")
    if config.local_layers:
        specs.append(TensorSpec(SPAN, (2,), "int32"))
    if config.attention_sub_norm:
        width = config.num_heads * config.head_dim
        specs.append(TensorSpec("attention_sub_norm", (width,), "float32"))
    specs += linear(groups["o"])
    specs += norms(*["attention_output_norm"] * config.output_norms, "post_attention_norm")
    specs += linear(groups["gate_up"])
    if config.ffn_sub_norm:
        specs.append(TensorSpec("ffn_sub_norm", (config.intermediate_size,), "float32"))
    return specs + linear(groups["down"]) + norms(*["ffn_output_norm"] * config.output_norms)


def layer_span(config: ModelConfig, layer: int) -> tuple[int, int]:
    """Return a layer's span: the first column of its rotary table, and its window in tokens."""
    if layer in config.local_layers:
        return config.head_dim, config.sliding_window
    return 0, UNLIMITED


def rope_tables(
    bb: relax.BlockBuilder, config: ModelConfig, positions: int | tirx.PrimExpr
) -> relax.Var:
    """Emit the rotary table of a model, ``(positions, D)``, with the local layers' beside it."""
    table = rope_table(bb, positions, config.head_dim, config.rope_theta)
    if not config.local_layers:
        return table
    local = rope_table(bb, positions, config.head_dim, config.local_rope_theta)
    return bb.emit(relax.op.concat([table, local], axis=1))


def rope_width(config: ModelConfig) -> int:
    """Return the columns of :func:`rope_tables`."""
    return config.head_dim * (2 if config.local_layers else 1)


def head_tensors(config: ModelConfig, head: HeadFormat) -> list[TensorSpec]:
    """Return the tensors outside the layers: embedding, final norm, and the head if not tied."""
    size = (config.vocab_size, config.hidden_size)
    specs = head.tensors("embedding", *size)
    specs.append(TensorSpec("final_norm", (config.hidden_size,), "float32"))
    return specs if config.tied_head else specs + head.tensors("head", *size)


def decoder_layer(project: Projections, x: relax.Expr, attend: Attention) -> relax.Var:
    """Emit one decoder layer.

    Parameters
    ----------
    project : Projections
        Emits the layer's projections.
    x : relax.Expr
        ``(T, H)`` float32, the residual stream.
    attend : callable
        Emits attention for the fused ``(T, (Hq + 2 Hkv) D)`` queries, keys and values.

    Returns
    -------
    relax.Var
        ``(T, H)`` float32.
    """
    mixed = attend(project.normed_heads(project("qkv", x, norm="input_norm")))
    x = project(
        "o", mixed, norm="attention_sub_norm", output_norm="attention_output_norm", residual=x
    )
    gate_up = project("gate_up", x, norm="post_attention_norm")
    return project(
        "down",
        gate_up,
        norm="ffn_sub_norm",
        output_norm="ffn_output_norm",
        gated=True,
        residual=x,
    )


@dataclass(frozen=True)
class Rotated:
    """Queries and keys as attention takes them, and the table by which it turns them."""

    qkv: relax.Expr
    rope: relax.Expr


def rotated(
    bb: relax.BlockBuilder,
    config: ModelConfig,
    weights: Mapping[str, relax.Expr],
    qkv: relax.Expr,
    rope: relax.Expr,
    position: Callable[[], relax.Expr],
) -> Rotated:
    """Emit a layer's own rotation, where layers differ in it; else attention turns by `rope`."""
    if SPAN not in weights:
        return Rotated(qkv, rope)
    turned = rotate_heads(bb, qkv, position(), rope, weights[SPAN], attention_shape(config))
    return Rotated(turned, no_rotation(bb, rope.ty.shape[0], config.head_dim))


class Ends:
    """The tensors outside the layers, as variables of a function: embedding, norm and head."""

    def __init__(self, config: ModelConfig, head: HeadFormat) -> None:
        self.config, self.format = config, head
        self.specs = head_tensors(config, head)
        self.variables = {spec.name: relax.Var(spec.name, spec.type) for spec in self.specs}

    @property
    def parameters(self) -> list[relax.Var]:
        """The variables, in the order of :func:`head_tensors`."""
        return list(self.variables.values())

    def embed(self, bb: relax.BlockBuilder, tokens: relax.Expr) -> relax.Var:
        """Emit the ``(T, H)`` float32 embedding of ``(T,)`` int32 tokens."""
        x = embed(bb, tokens, *self._table("embedding"))
        scale = self.config.embedding_scale
        return x if scale == 1.0 else bb.emit(relax.op.multiply(x, relax.const(scale, "float32")))

    def normalised(self, bb: relax.BlockBuilder, x: relax.Expr) -> relax.Var:
        """Emit the final norm of ``(T, H)`` float32."""
        return rms_norm(bb, x, self.variables["final_norm"], self.config.rms_norm_eps)

    @property
    def head(self) -> tuple[relax.Var, relax.Var | None]:
        """The head's table and its scale."""
        return self._table("embedding" if self.config.tied_head else "head")

    def _table(self, name: str) -> tuple[relax.Var, relax.Var | None]:
        return self.variables[name], self.variables.get(f"{name}_scale")


def tuple_items(
    bb: relax.BlockBuilder, value: relax.Expr, names: Sequence[str]
) -> dict[str, relax.Expr]:
    """Emit the fields of a tuple, by name."""
    return {name: bb.emit(relax.TupleGetItem(value, i)) for i, name in enumerate(names)}
