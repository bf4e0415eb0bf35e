"""The arguments of a group of ternary projections, as every target's rules see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .ternary import Packing, Segment, segments
from .tir import Buffer


@dataclass(frozen=True)
class Linear:
    """The buffers and static parameters of `bitlinear` or `fused_bitlinear`.

    Attributes
    ----------
    parts : list of Segment
        The projections.
    packing : Packing
        Of their matrix.
    lora_scale : float
        Factor on the adapters' outputs.
    activation : str
        Of the gate that comes first: x is then ``(T, 2 K)``. Empty where there is none.
    epsilon : float
        Of the norm.
    x : Buffer
        ``(T, K)`` float32.
    packed, scales : Buffer
        ``(N / 16, W, 16)`` int32 and ``(S,)`` float32.
    norm : Buffer or None
        ``(K,)`` float32, the weight of the norm.
    a, b : Buffer or None
        ``(S', r, K)`` and ``(r, N')`` float32, the adapters.
    lora_input : Buffer or None
        ``(T, K)`` float32, the adapters' input where it is another one.
    residual : Buffer or None
        ``(T, N)`` float32, added to the result.
    y : Buffer
        ``(T, N)`` float32, the result.
    """

    parts: list[Segment]
    packing: Packing
    lora_scale: float
    activation: str
    epsilon: float
    x: Buffer
    packed: Buffer
    scales: Buffer
    norm: Buffer | None
    a: Buffer | None
    b: Buffer | None
    lora_input: Buffer | None
    residual: Buffer | None
    y: Buffer

    @classmethod
    def of(cls, parameters: dict[str, Any], buffers: tuple[Buffer, ...]) -> Linear:
        """Return the arguments of a kernel with these parameters and buffers."""
        x, packed, scales, *rest, y = buffers
        norm = rest.pop(0) if "epsilon" in parameters else None
        residual = rest.pop() if "residual" in parameters else None
        a, b, lora_input = (*rest, None, None, None)[:3]
        return cls(
            parts=segments(parameters),
            packing=Packing.of(parameters),
            lora_scale=float(parameters["lora_scale"]),
            activation=str(parameters.get("activation", "")),
            epsilon=float(parameters.get("epsilon", 0.0)),
            x=x,
            packed=packed,
            scales=scales,
            norm=norm,
            a=a,
            b=b,
            lora_input=lora_input,
            residual=residual,
            y=y,
        )

    @property
    def columns(self) -> int:
        """K, the width of the projections' input."""
        width = int(self.x.shape[1])
        return width // 2 if self.activation else width

    @property
    def is_plain(self) -> bool:
        """Whether the projections' input is x itself."""
        return not self.activation and self.norm is None
