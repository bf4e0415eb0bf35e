"""The projections of a decoder layer, each with the norm and gate before it and the sum after it.

They are kernels of their own, or parts of the projection's kernel: a token that is written is too
little work for several, and where memory is the limit what need not go through it is gained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import relax

from ..config import ModelConfig
from ..kernels import (
    AttentionShape,
    LinearGroup,
    Norm,
    bitlinear,
    dense,
    dropout,
    fused_bitlinear,
    gated_activation,
    head_norm,
    rms_norm,
)
from ..lora import linear_groups

Factors = tuple[relax.Expr, relax.Expr]
HELD = 4096
"""Elements of an input up to which a projection's kernel reads each once."""


@dataclass(frozen=True)
class LoraUse:
    """How a layer applies its adapters: the factors by group, the scale, and dropout's seed."""

    modules: tuple[str, ...]
    factors: dict[str, Factors]
    scale: float
    dropout: float = 0.0
    seed: relax.Expr | None = None


class Projections:
    """The projections of one layer, as kernels that have gradients.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    config : ModelConfig
        The model.
    weights : dict
        The layer's frozen tensors by name.
    lora : LoraUse
        The adapters.
    packing : str
        Of the weights.
    """

    def __init__(
        self,
        bb: relax.BlockBuilder,
        config: ModelConfig,
        weights: dict[str, relax.Expr],
        lora: LoraUse,
        packing: str,
    ) -> None:
        self.bb, self.config, self.weights, self.lora = bb, config, weights, lora
        groups = linear_groups(config, lora.modules, packing)
        self.groups = {group.name: group for group in groups}

    def __call__(
        self,
        name: str,
        x: relax.Expr,
        *,
        norm: str = "",
        gated: bool = False,
        output_norm: str = "",
        residual: relax.Expr | None = None,
    ) -> relax.Var:
        """Emit a group of projections.

        Parameters
        ----------
        name : str
            Of the group.
        x : relax.Expr
            ``(T, K)`` float32; with a gate ``(T, 2 K)``.
        norm : str
            The norm of the input; a model may be without it.
        gated : bool
            Whether the gate's activation comes first.
        output_norm : str
            The norm of what is added to the residual; a model may be without it.
        residual : relax.Expr, optional
            ``(T, N)`` float32, to which the result is added.

        Returns
        -------
        relax.Var
            ``(T, N)`` float32.
        """
        if gated:
            x = gated_activation(self.bb, x, self.config.activation)
        if norm in self.weights:
            x = rms_norm(self.bb, x, self.weights[norm], self.config.rms_norm_eps)
        y = self._product(name, x)
        if output_norm in self.weights:
            y = rms_norm(self.bb, y, self.weights[output_norm], self.config.rms_norm_eps)
        return y if residual is None else self.bb.emit(relax.op.add(residual, y))

    def _product(self, name: str, x: relax.Expr) -> relax.Var:
        """Emit the matrices and the adapters of a group."""
        dropped = self._dropped(name, x)
        if self.config.dense:
            use = self.groups[name], self.lora.factors.get(name), self.lora.scale
            return dense(self.bb, x, self.weights[name], *use, lora_input=dropped)
        return bitlinear(self.bb, x, *self._tensors(name), lora_input=dropped)

    def normed_heads(self, qkv: relax.Expr) -> relax.Expr:
        """Emit the norms of the heads of queries and keys, where a model has them."""
        if not self.config.head_norms:
            return qkv
        norms = self.weights["query_norm"], self.weights["key_norm"]
        shape = AttentionShape(
            self.config.num_heads, self.config.num_kv_heads, self.config.head_dim
        )
        return head_norm(self.bb, qkv, *norms, shape, self.config.rms_norm_eps)

    def _tensors(
        self, name: str
    ) -> tuple[relax.Expr, relax.Expr, LinearGroup, Factors | None, float]:
        """Return a group, its frozen tensors and its adapter, as the kernels take them."""
        packed, scale = self.weights[name], self.weights[f"{name}_scale"]
        return packed, scale, self.groups[name], self.lora.factors.get(name), self.lora.scale

    def _dropped(self, name: str, x: relax.Expr) -> relax.Var | None:
        """Emit the adapter's input where dropout makes it differ from x."""
        lora = self.lora
        if name not in lora.factors or lora.dropout == 0.0:
            return None
        return dropout(self.bb, x, lora.seed, list(self.groups).index(name), lora.dropout)


class FusedProjections(Projections):
    """The same as one kernel each."""

    def __call__(
        self,
        name: str,
        x: relax.Expr,
        *,
        norm: str = "",
        gated: bool = False,
        output_norm: str = "",
        residual: relax.Expr | None = None,
    ) -> relax.Var:
        """Emit a group of projections, see :meth:`Projections.__call__`."""
        if self.config.dense:
            rest: dict[str, Any] = {"output_norm": output_norm, "residual": residual}
            return Projections.__call__(self, name, x, norm=norm, gated=gated, **rest)
        weight = self.weights.get(norm)
        return fused_bitlinear(
            self.bb,
            x,
            *self._tensors(name),
            activation=self.config.activation if gated else None,
            norm=None if weight is None else Norm(weight, self.config.rms_norm_eps),
            residual=residual,
        )


class TrainedProjections(FusedProjections):
    """The same for many tokens, where the gate of wide blocks has a kernel of its own.

    A projection's kernel reads a wide input several times, which the gate's are twice over. With
    dropout the adapter's input is another one, so that the projection's has to be there as a
    tensor.
    """

    def __call__(
        self,
        name: str,
        x: relax.Expr,
        *,
        norm: str = "",
        gated: bool = False,
        output_norm: str = "",
        residual: relax.Expr | None = None,
    ) -> relax.Var:
        """Emit a group of projections, see :meth:`Projections.__call__`."""
        if self.config.dense:
            rest: dict[str, Any] = {"output_norm": output_norm, "residual": residual}
            return Projections.__call__(self, name, x, norm=norm, gated=gated, **rest)
        dropped = self.lora.dropout > 0.0 and name in self.lora.factors
        if gated and (dropped or self.groups[name].inputs > HELD):
            x, gated = gated_activation(self.bb, x, self.config.activation), False
        if dropped:
            return Projections.__call__(self, name, x, norm=norm, residual=residual)
        return super().__call__(name, x, norm=norm, gated=gated, residual=residual)
