"""`fabric export --gguf`: a model as a file for programs of the llama.cpp family."""

from __future__ import annotations

import time
from pathlib import Path

from .output import Output
from .progress import PhaseBar

TYPES = ("TQ2_0", "TQ1_0", "F16")
ARCHITECTURES = ("bitnet", "bitnet-b1.58", "bitnet-25", "llama")
_RELU2_NOTE = (
    "Note: llama.cpp reads this model's relu² gate from the key bitnet.hidden_activation; versions "
    "before that key compute another gate and write nonsense. For bitnet.cpp and ik_llama.cpp "
    "export with --architecture bitnet-b1.58."
)


def export_gguf_file(
    output: Output, model: str, path: Path, kind: str, architecture: str | None, i2s_layout: str
) -> None:
    """Write `model` to `path` and say what became of its tensors."""
    from ..models import open_model
    from ..models.gguf import export_gguf
    from ..models.gguf.export import choose_architecture

    checkpoint = open_model(model, i2s_layout)
    chosen = choose_architecture(checkpoint.config, architecture)
    start = time.monotonic()
    with PhaseBar(output) as bar:
        counts = export_gguf(
            checkpoint, path, kind, chosen.name, lambda fraction: bar("write tensors", fraction)
        )
    size = path.stat().st_size / 2**20
    tensors = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    output.say(f"[green]Done[/]: [bold]{path}[/], {size:.1f} MiB, {chosen.name}: {tensors} tensors")
    if counts.get("F16", 0) > 2 and kind != "F16":
        output.say("Matrices whose rows are no multiple of 256 are F16: the type has no other row.")
    if chosen.name == "bitnet" and checkpoint.config.activation == "relu2":
        output.say(_RELU2_NOTE)
    output.result(
        {
            "file": path,
            "model": checkpoint.name,
            "architecture": chosen.name,
            "type": kind,
            "tensors": counts,
            "size_mib": size,
            "seconds": time.monotonic() - start,
        }
    )
