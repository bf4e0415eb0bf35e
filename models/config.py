"""What a model looks like: the numbers that fix every shape and every formula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..targets import FabricError

ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_MODULES = ("gate_proj", "up_proj", "down_proj")
MODULES = ATTENTION_MODULES + MLP_MODULES
ACTIVATIONS = ("silu", "relu2", "gelu")
OF_LOCAL_LAYERS = ("local_rope_theta", "sliding_window")
TUPLES = ("eos_token_ids", "local_layers")
LINEARS = ("ternary", "dense")


@dataclass(frozen=True)
class ModelConfig:
    """One decoder-only transformer whose linear layers are all BitLinear, or all ordinary ones.

    Every layer computes, with RMSNorm everywhere and no bias anywhere::

        x += o_proj(sub_norm(attention(rope(q_proj(n)), rope(k_proj(n)), v_proj(n)))),  n = norm(x)
        x += down_proj(sub_norm(act(gate_proj(n)) * up_proj(n))),                       n = norm(x)

    A family may have a norm of each head of queries and keys before rope, and one of what is added
    to x.

    Parameters
    ----------
    family : str
        Name of the row in `families.FAMILIES`, or ``random``.
    hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim, vocab_size : int
        The shape. `num_heads` is a multiple of `num_kv_heads`; `head_dim` is even.
    rope_theta : float
        Base of the rotary frequencies ``theta ** (-2i / head_dim)``, rotate-half layout.
    rms_norm_eps : float
        Added to the mean square inside every RMSNorm.
    activation : str
        ``silu``, ``relu2`` (``max(x, 0) ** 2``) or ``gelu`` (its tanh form), of the gate.
    attention_sub_norm, ffn_sub_norm : bool
        Whether an RMSNorm stands before `o_proj`, and before `down_proj`.
    tied_head : bool
        Whether the output head is the embedding.
    max_context : int
        Tokens that the model was trained to attend over.
    bos_token_id : int or None
        Token that opens a document, where the model has one.
    eos_token_ids : tuple of int
        Tokens that end a generation.
    linear : str
        ``ternary`` for BitLinear; ``dense`` for float16 matrices.
    head_norms, output_norms : bool
        Whether each head of queries and keys has a norm, and each block's output.
    embedding_scale : float
        Factor on the token vectors, not on the head.
    local_layers : tuple of int
        Layers whose tokens attend to the `sliding_window` last ones alone, themselves included, and
        whose rotary base is `local_rope_theta`.
    local_rope_theta, sliding_window : float, int
        Of these; zero where there are none.

    Raises
    ------
    FabricError
        Where the numbers contradict each other.
    """

    family: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rope_theta: float
    rms_norm_eps: float
    activation: str
    attention_sub_norm: bool
    ffn_sub_norm: bool
    tied_head: bool
    max_context: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    linear: str = "ternary"
    head_norms: bool = False
    output_norms: bool = False
    embedding_scale: float = 1.0
    local_layers: tuple[int, ...] = ()
    local_rope_theta: float = 0.0
    sliding_window: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # The annotations are strings here; every plain int and float of the shape is positive.
            least = 0 if field.name in OF_LOCAL_LAYERS and not self.local_layers else None
            if field.type in ("int", "float") and not value > 0 and value != least:
                raise _contradiction(f"{field.name} is {value}, not a positive number")
        if self.num_heads % self.num_kv_heads:
            raise _contradiction(
                f"{self.num_heads} attention heads cannot share {self.num_kv_heads} key-value heads"
            )
        if self.head_dim % 2:
            raise _contradiction(f"head_dim is {self.head_dim}, and rotary positions need pairs")
        if self.activation not in ACTIVATIONS:
            raise _contradiction(f"the gate's activation is {self.activation!r}")
        if self.linear not in LINEARS:
            raise _contradiction(f"its linear layers are {self.linear!r}")

    @property
    def attention_size(self) -> int:
        """Width of the attention's output, `num_heads * head_dim`."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of one token's keys, `num_kv_heads * head_dim`."""
        return self.num_kv_heads * self.head_dim

    def module_shape(self, module: str) -> tuple[int, int]:
        """Give a BitLinear's shape as (out N, in K); `module` is one of `MODULES`."""
        hidden, ffn, attention, kv = (
            self.hidden_size,
            self.intermediate_size,
            self.attention_size,
            self.kv_size,
        )
        return {
            "q_proj": (attention, hidden),
            "k_proj": (kv, hidden),
            "v_proj": (kv, hidden),
            "o_proj": (hidden, attention),
            "gate_proj": (ffn, hidden),
            "up_proj": (ffn, hidden),
            "down_proj": (hidden, ffn),
        }[module]

    def norm_shapes(self) -> dict[str, int]:
        """Give the length of every norm by its name, layer by layer, `final_norm` last."""
        layer = {"input_norm": self.hidden_size, "post_attention_norm": self.hidden_size}
        if self.head_norms:
            layer |= {"query_norm": self.head_dim, "key_norm": self.head_dim}
        if self.output_norms:
            layer |= {
                "attention_output_norm": self.hidden_size,
                "ffn_output_norm": self.hidden_size,
            }
        if self.attention_sub_norm:
            layer["attention_sub_norm"] = self.attention_size
        if self.ffn_sub_norm:
            layer["ffn_sub_norm"] = self.intermediate_size
        shapes = {
            f"layers.{i}.{name}": size
            for i in range(self.num_layers)
            for name, size in layer.items()
        }
        return {**shapes, "final_norm": self.hidden_size}

    @property
    def dense(self) -> bool:
        """Whether the linear layers are float16 matrices."""
        return self.linear == "dense"

    @property
    def linear_parameters(self) -> int:
        """Number of weights in the linear layers."""
        shapes = (self.module_shape(module) for module in MODULES)
        return self.num_layers * sum(rows * columns for rows, columns in shapes)

    @property
    def parameters(self) -> int:
        """Number of weights: linear layers, norms, embedding, and the head where it is separate."""
        tables = (1 if self.tied_head else 2) * self.vocab_size * self.hidden_size
        return tables + self.linear_parameters + sum(self.norm_shapes().values())

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON can hold them."""
        return {**asdict(self), **{name: list(getattr(self, name)) for name in TUPLES}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Read what `to_dict` gave.

        Raises
        ------
        FabricError
            Where a field is missing or unknown, or the numbers contradict each other.
        """
        names = {field.name for field in fields(cls)}
        if different := sorted(names.symmetric_difference(values)):
            raise FabricError(
                f"The model's description has missing or unknown fields: {', '.join(different)}.",
                "It was written by another version of bitfabric: compile the model again.",
            )
        return cls(**{**values, **{name: tuple(values[name]) for name in TUPLES}})


def _contradiction(cause: str) -> FabricError:
    return FabricError(
        f"The model's configuration is contradictory: {cause}.",
        "Correct the numbers in the model's config.json, or download it again.",
    )
