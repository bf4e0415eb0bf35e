"""What a person chooses when a bundle is compiled."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..models.graph import Formats, HeadFormat
from ..models.kernels import KV_CACHES
from ..models.kernels.moments import MOMENTS
from ..models.lora import LoraOptions
from ..models.packing import PACKINGS, TWO_BIT
from ..targets import FabricError

HEADS = ("int8", "f16")
GRADIENTS = ("all", "layer", "layer-twice")
RECOMPUTE = ("auto", "all", "wide", "feed-forward", "none")


@dataclass(frozen=True)
class CompileOptions:
    """The fixed sizes and formats of a bundle.

    Attributes
    ----------
    context : int
        Tokens of a training row. Inference has no such limit.
    micro_batch : int
        Rows that one call of the training step takes; a larger batch is several calls.
    lora : LoraOptions
        What is trained.
    head : str
        Storage of embedding and head: ``"int8"`` with a scale a row, or ``"f16"``.
    packing : str
        Of the ternary matrices: ``"2bit"``, or ``"1.6bit"`` (five weights a byte), which is smaller
        and takes longer to unpack.
    moments : str
        Of AdamW: ``"f32"``, ``"bf16"``, or ``"int8"`` with a scale for each block of 256.
    kv_cache : str
        Keys and values in inference: ``"f32"``, ``"f16"``, or ``"int8"`` with a scale for each
        token and head.
    resident_layers : int, optional
        Layers that stay in memory, the others are read while the one before computes; None for all.
    gradients : str
        Whether those of ``"all"`` layers are kept until the update, or of one ``"layer"``, whose
        update follows at once: a step is then one micro-batch, and is clipped by the norm of the
        step before, or runs its backward pass twice (``"layer-twice"``).
    recompute : str
        What of a layer's forward pass its adjoint computes again: ``"all"``; what is ``"wide"``,
        which keeps attention and the projection behind it; the ``"feed-forward"`` block; or
        ``"none"`` of the costly kernels. ``"auto"`` keeps what is small beside the model.
    host_ends : bool
        Whether embedding and head stay in the bundle's file while a training does not need them:
        the tokens' rows are read for the embedding, and the head takes some layers' place.
    host_inputs : int
        Layers, from the first, whose inputs wait outside for their adjoints: in the host's memory
        where a device computes, in a file where the processor does.
    memory_budget : int, optional
        Most bytes that a training may take; the compiler lessens the rest until it fits.
    debug_dump : pathlib.Path, optional
        A folder for the IR after each phase.
    """

    context: int = 256
    micro_batch: int = 1
    lora: LoraOptions = field(default_factory=LoraOptions)
    head: str = "int8"
    packing: str = TWO_BIT.name
    moments: str = "f32"
    kv_cache: str = "f32"
    resident_layers: int | None = None
    gradients: str = "all"
    recompute: str = "auto"
    host_ends: bool = False
    host_inputs: int = 0
    memory_budget: int | None = None
    debug_dump: Path | None = None

    def __post_init__(self) -> None:
        for what, name, known in (
            ("head format", self.head, HEADS),
            ("packing", self.packing, tuple(PACKINGS)),
            ("format of moments", self.moments, MOMENTS),
            ("format of a cache", self.kv_cache, tuple(KV_CACHES)),
        ):
            if name not in known:
                raise FabricError(f"There is no {what} {name!r}.", f"Use {' or '.join(known)}.")
        if self.gradients not in GRADIENTS:
            raise FabricError(
                f"There is no way {self.gradients!r} to keep gradients.",
                f"Use {', '.join(GRADIENTS[:-1])} or {GRADIENTS[-1]}.",
            )
        if self.recompute not in RECOMPUTE:
            raise FabricError(
                f"There is no way {self.recompute!r} to recompute.",
                f"Use {', '.join(RECOMPUTE[:-1])} or {RECOMPUTE[-1]}.",
            )
        if self.saves_memory and self.recompute not in ("auto", "all"):
            raise FabricError(
                f"--recompute {self.recompute} keeps activations of every layer, which --stream "
                "and --gradients layer do without.",
                "Leave out one of them, or use --recompute all.",
            )
        for name, value, most in (
            ("context", self.context, 1 << 17),
            ("micro-batch", self.micro_batch, 1 << 12),
        ):
            if not 1 <= value <= most:
                raise FabricError(f"A {name} of {value} is out of range.", f"Use 1 to {most}.")

    @property
    def formats(self) -> Formats:
        """How what a model and its training keep in memory is stored."""
        return Formats(HeadFormat(self.head), self.packing, self.moments, self.kv_cache)

    @property
    def saves_memory(self) -> bool:
        """Whether a step goes layer by layer, so that nothing but their inputs can be kept."""
        streams = self.resident_layers is not None or self.host_ends or self.host_inputs > 0
        return streams or self.gradients != "all"
