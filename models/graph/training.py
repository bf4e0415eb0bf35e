"""The training side: a layer and its ends as functions, then a micro-step that calls them.

The layer is compiled once and called for each layer, so compile time does not grow with depth. The
input of each layer is kept, and what the forward pass gives beside its result; a layer's adjoint
recomputes the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm import relax

from ..config import ModelConfig
from ..kernels import (
    accumulate,
    attention,
    head_loss,
    moment_type,
    positions,
    sum_squares,
    update,
    windowed,
)
from ..kernels.norm import rms_norm_vjp
from ..lora import LoraOptions, adapter_layout
from .layer import (
    SPAN,
    Ends,
    Formats,
    HeadFormat,
    attention_shape,
    decoder_layer,
    layer_tensors,
    rope_tables,
    rope_width,
    rotated,
    tuple_items,
)
from .projections import LoraUse, Projections, TrainedProjections

KEPT = "layer_forward_kept"
"""The layer that gives ``(y, *kept)`` where anything is kept for its adjoint."""


def activation_widths(config: ModelConfig) -> dict[str, int]:
    """Return the columns of each ``(T, N)`` float32 result that a layer's adjoint reads again."""
    attention = config.num_heads * config.head_dim
    return {
        "qkv": attention + 2 * config.num_kv_heads * config.head_dim,
        "attention": attention,
        "o": config.hidden_size,
        "gate_up": 2 * config.intermediate_size,
    }


@dataclass(frozen=True)
class TrainingShape:
    """What a training step is compiled for.

    Attributes
    ----------
    micro_batch : int
        B, rows of a micro-batch.
    context : int
        C, tokens of a row.
    """

    micro_batch: int
    context: int

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.micro_batch * self.context


class _Layer:
    """The variables of a layer function in training."""

    def __init__(
        self, config: ModelConfig, shape: TrainingShape, lora: LoraOptions, packing: str
    ) -> None:
        self.config, self.shape, self.lora, self.packing = config, shape, lora, packing
        self.layout = adapter_layout(config, lora)
        self.x = relax.Var("x", relax.TensorType((shape.tokens, config.hidden_size), "float32"))
        self.starts = relax.Var(
            "starts", relax.TensorType((shape.micro_batch, shape.context), "int32")
        )
        self.rope = relax.Var(
            "rope", relax.TensorType((shape.context, rope_width(config)), "float32")
        )
        specs = layer_tensors(config, packing)
        self.weights = {spec.name: relax.Var(spec.name, spec.type) for spec in specs}
        self.factors = {
            (factor.group, factor.factor): relax.Var(
                f"{factor.group}_{factor.factor}", relax.TensorType(factor.shape, "float32")
            )
            for factor in self.layout.factors
        }
        self.seed = relax.Var("seed", relax.TensorType((1,), "int32")) if lora.dropout else None

    @property
    def parameters(self) -> list[relax.Var]:
        """Parameters of the layer function: first those that are differentiated."""
        seed = [] if self.seed is None else [self.seed]
        frozen = [self.starts, self.rope, *seed, *self.weights.values()]
        return [self.x, *self.factors.values(), *frozen]

    def emit(self, bb: relax.BlockBuilder, projections: type[Projections]) -> relax.Var:
        """Emit the layer."""
        groups = dict.fromkeys(group for group, _ in self.factors)
        lora = LoraUse(
            self.lora.modules,
            {group: (self.factors[group, "a"], self.factors[group, "b"]) for group in groups},
            self.lora.scale,
            self.lora.dropout,
            self.seed,
        )
        return decoder_layer(
            projections(bb, self.config, dict(self.weights), lora, self.packing),
            self.x,
            lambda qkv: self._attend(bb, qkv),
        )

    def _attend(self, bb: relax.BlockBuilder, qkv: relax.Expr) -> relax.Var:
        config, starts = self.config, self.starts
        place = rotated(bb, config, self.weights, qkv, self.rope, lambda: positions(bb, starts))
        if SPAN in self.weights and self.shape.context > config.sliding_window:
            starts = windowed(bb, starts, self.weights[SPAN])
        return attention(bb, place.qkv, starts, place.rope, attention_shape(config))


def training_functions(
    bb: relax.BlockBuilder,
    config: ModelConfig,
    shape: TrainingShape,
    lora: LoraOptions,
    formats: Formats,
    fused: bool = False,
) -> None:
    """Add ``embed``, ``layer_forward``, ``head_loss``, ``head_loss_vjp`` and ``rope``.

    ``layer_forward`` takes x and the adapter's factors first: its adjoint is taken with respect to
    these. With dropout there is ``layer_evaluate`` as well, the layer without it. With `fused`,
    norms and residuals are parts of the projections' kernels.
    """
    projections = TrainedProjections if fused else Projections
    functions = {"layer_forward": lora}
    if lora.dropout:
        functions["layer_evaluate"] = replace(lora, dropout=0.0)
    for name, use in functions.items():
        layer = _Layer(config, shape, use, formats.packing)
        with bb.function(name, layer.parameters):
            with bb.dataflow():
                out = bb.emit_output(layer.emit(bb, projections))
            bb.emit_func_output(out)

    ends = Ends(config, formats.head)
    tokens = relax.Var("tokens", relax.TensorType((shape.tokens,), "int32"))
    with bb.function("embed", [tokens, *ends.parameters]):
        with bb.dataflow():
            out = bb.emit_output(ends.embed(bb, tokens))
        bb.emit_func_output(out)

    with bb.function("rope", []):
        with bb.dataflow():
            out = bb.emit_output(rope_tables(bb, config, shape.context))
        bb.emit_func_output(out)

    for name in ("head_loss", "head_loss_vjp"):
        _head_function(bb, name, config, shape, formats.head)


def _head_function(
    bb: relax.BlockBuilder, name: str, config: ModelConfig, shape: TrainingShape, head: HeadFormat
) -> None:
    """Add the final norm and loss; ``head_loss_vjp`` returns the adjoint of its input as well."""
    ends = Ends(config, head)
    x = relax.Var("x", relax.TensorType((shape.tokens, config.hidden_size), "float32"))
    labels = relax.Var("labels", relax.TensorType((shape.tokens,), "int32"))
    inverse = relax.Var("inverse_count", relax.TensorType((1,), "float32"))
    differentiate = name == "head_loss_vjp"
    inputs = [x, labels, inverse] if differentiate else [x, labels]
    with bb.function(name, [*inputs, *ends.parameters]):
        with bb.dataflow():
            h = ends.normalised(bb, x)
            result = head_loss(bb, h, *ends.head, labels, inverse if differentiate else None)
            if differentiate:
                loss = bb.emit(relax.TupleGetItem(result, 0))
                dh = bb.emit(relax.TupleGetItem(result, 1))
                weight = ends.variables["final_norm"]
                dx = rms_norm_vjp(bb, dh, x, weight, config.rms_norm_eps)
                result = bb.emit(relax.Tuple([loss, dx]))
            out = bb.emit_output(result)
        bb.emit_func_output(out)


class _Step:
    """The variables of a whole micro-step, and the calls of the layer functions."""

    def __init__(
        self,
        bb: relax.BlockBuilder,
        config: ModelConfig,
        shape: TrainingShape,
        lora: LoraOptions,
        formats: Formats,
    ) -> None:
        self.bb, self.config, self.shape = bb, config, shape
        self.layer = _Layer(config, shape, lora, formats.packing)
        self.ends = Ends(config, formats.head)
        depth = config.num_layers
        specs = layer_tensors(config, formats.packing)
        factors = relax.TupleType([v.ty for v in self.layer.factors.values()])
        self.names = [spec.name for spec in specs]
        self.tokens = relax.Var("tokens", relax.TensorType((shape.tokens,), "int32"))
        self.labels = relax.Var("labels", relax.TensorType((shape.tokens,), "int32"))
        self.layers = relax.Var(
            "layers", relax.TupleType([relax.TupleType([s.type for s in specs])] * depth)
        )
        self.adapters = relax.Var("adapters", relax.TupleType([factors] * depth))
        self.gradients = relax.Var("gradients", relax.TupleType([factors] * depth))
        self.inverse = relax.Var("inverse_count", relax.TensorType((1,), "float32"))
        self.seeds = (
            None
            if self.layer.seed is None
            else relax.Var("seeds", relax.TupleType([self.layer.seed.ty] * depth))
        )

    @property
    def inputs(self) -> list[relax.Var]:
        """The parameters that evaluation and training share."""
        seeds = [] if self.seeds is None else [self.seeds]
        model = [self.layer.rope, *self.ends.parameters, self.layers, self.adapters]
        return [self.tokens, self.labels, self.layer.starts, *seeds, *model]

    def call(self, function: str, arguments: list[relax.Expr]) -> relax.Var:
        """Emit a call of another function of the module."""
        return self.bb.emit(relax.Call(self.bb.get().get_global_var(function), arguments))

    def layer_arguments(self, index: int) -> list[relax.Expr]:
        """Emit what follows x in a layer function's parameters."""
        emit, item = self.bb.emit, relax.TupleGetItem
        seed = [] if self.seeds is None else [emit(item(self.seeds, index))]
        weights = tuple_items(self.bb, emit(item(self.layers, index)), self.names)
        factors = self.factors(self.adapters, index)
        return [*factors, self.layer.starts, self.layer.rope, *seed, *weights.values()]

    def factors(self, adapters: relax.Var, index: int) -> list[relax.Expr]:
        """Emit the factors of one layer's adapter, or their gradients."""
        names = [f"{group}_{factor}" for group, factor in self.layer.factors]
        layer = self.bb.emit(relax.TupleGetItem(adapters, index))
        return list(tuple_items(self.bb, layer, names).values())

    def forward(
        self, layer: str = "layer_forward"
    ) -> tuple[list[relax.Var], list[list[relax.Var]]]:
        """Emit the forward pass.

        Returns
        -------
        tuple
            The input of each layer and the last output; and what each layer keeps beside it.
        """
        states = [self.call("embed", [self.tokens, *self.ends.parameters])]
        kept: list[list[relax.Var]] = []
        for index in range(self.config.num_layers):
            result = self.call(layer, [states[-1], *self.layer_arguments(index)])
            rest: list[relax.Var] = []
            if isinstance(result.ty, relax.TupleType):
                count = len(result.ty.fields)
                result, *rest = (self.bb.emit(relax.TupleGetItem(result, i)) for i in range(count))
            states.append(result)
            kept.append(rest)
        return states, kept


def add_steps(
    bb: relax.BlockBuilder,
    config: ModelConfig,
    shape: TrainingShape,
    lora: LoraOptions,
    formats: Formats,
) -> None:
    """Add ``train_step``, ``evaluate_step``, ``gradient_squares`` and ``update``.

    Needs ``layer_vjp(*layer_forward's parameters, dy, *kept) -> (dx, *dfactors)`` in the module,
    and ``layer_forward_kept`` where anything is kept.
    """
    step = _Step(bb, config, shape, replace(lora, dropout=0.0), formats)
    layer = "layer_evaluate" if lora.dropout else "layer_forward"
    with bb.function("evaluate_step", step.inputs):
        states, _ = step.forward(layer)
        loss = step.call("head_loss", [states[-1], step.labels, *step.ends.parameters])
        bb.emit_func_output(loss)

    step = _Step(bb, config, shape, lora, formats)
    with bb.function("train_step", [*step.inputs, step.gradients, step.inverse]):
        keeps = any(name.name_hint == KEPT for name in bb.get().get_global_vars())
        states, kept = step.forward(KEPT if keeps else "layer_forward")
        arguments = [states[-1], step.labels, step.inverse, *step.ends.parameters]
        result = step.call("head_loss_vjp", arguments)
        loss, dx = (bb.emit(relax.TupleGetItem(result, i)) for i in range(2))
        totals = []
        for index in reversed(range(config.num_layers)):
            arguments = [states[index], *step.layer_arguments(index), dx, *kept[index]]
            adjoints = step.call("layer_vjp", arguments)
            dx = bb.emit(relax.TupleGetItem(adjoints, 0))
            sums = step.factors(step.gradients, index)
            terms = [bb.emit(relax.TupleGetItem(adjoints, i + 1)) for i in range(len(sums))]
            totals.append(accumulate(bb, sums, terms))
        bb.emit_func_output(relax.Tuple([loss, *totals]))
    _add_update(bb, config.num_layers, adapter_layout(config, lora).size, formats.moments)


def _add_update(bb: relax.BlockBuilder, depth: int, size: int, moments: str) -> None:
    """Add the gradient's squared norm, layer by layer, and the AdamW update of every layer."""
    flat = relax.TupleType([relax.TensorType((size,), "float32")] * depth)
    gradients = relax.Var("gradients", flat)
    with bb.function("gradient_squares", [gradients]):
        items = [bb.emit(relax.TupleGetItem(gradients, i)) for i in range(depth)]
        squares = [sum_squares(bb, item) for item in items]
        # One tensor, so that the host waits for the device once.
        bb.emit_func_output(bb.emit(relax.op.concat(squares, axis=0)))

    stored = relax.TupleType([moment_type(size, moments)] * depth)
    kinds = {"adapters": flat, "moments1": stored, "moments2": stored, "gradients": flat}
    buffers = [relax.Var(name, kind) for name, kind in kinds.items()]
    hyper = relax.Var("hyper", relax.TensorType((8,), "float32"))
    with bb.function("update", [*buffers, hyper]):
        updated = []
        for i in range(depth):
            items = [bb.emit(relax.TupleGetItem(buffer, i)) for buffer in buffers]
            updated.append(update(bb, items, hyper, moments))
        bb.emit_func_output(relax.Tuple(updated))
