"""`fabric export --onnx`: a model, with adapters, as a decoder for ONNX runtimes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import Output
from .progress import PhaseBar

if TYPE_CHECKING:
    from ..models.onnx_format import Adapters

ONNX_BITS = ("2", "4", "8")
ONNX_HEADS = ("f16", "int8")


def export_onnx_file(
    output: Output, model: str, path: Path, i2s_layout: str, values: Mapping[str, Any]
) -> None:
    """Write `model` to `path`; `values` are the options adapters, bits and head."""
    from ..models import open_model
    from ..models.onnx_format import OnnxOptions, export_onnx

    options = OnnxOptions(bits=int(values["bits"]), head=values["head"])
    checkpoint = open_model(model, i2s_layout)
    adapters = _adapters(checkpoint.config.to_dict(), values["adapters"])
    start = time.monotonic()
    with PhaseBar(output) as bar:
        files = export_onnx(
            checkpoint, path, options, adapters, lambda fraction: bar("write layers", fraction)
        )
    size = sum(file.stat().st_size for file in files) / 2**20
    others = f" with {', '.join(file.name for file in files[1:])}" if files[1:] else ""
    output.say(f"[green]Done[/]: [bold]{path}[/]{others}, {size:.1f} MiB")
    if not options.runs_on_standard_operators:
        output.say(
            f"Its {options.bits}-bit products are onnxruntime's operator MatMulNBits; for another "
            "runtime export with --bits 8."
        )
    output.result(
        {
            "file": path,
            "files": files,
            "model": checkpoint.name,
            "bits": options.bits,
            "head": options.head,
            "adapters": list(values["adapters"]),
            "size_mib": size,
            "seconds": time.monotonic() - start,
        }
    )


def _adapters(config: Mapping[str, Any], names: Sequence[str]) -> Adapters:
    """Read the adapters and refuse those that do not fit the model."""
    from ..runtime.adapter import read_adapter, split_weight
    from ..runtime.gguf_base import base_of_config
    from ..runtime.low_rank import adapter_shapes

    found = []
    for name in names:
        path, weight = split_weight(name)
        adapter = read_adapter(path, base_of_config(config))
        adapter.require_fit(
            adapter_shapes(config, adapter.rank), "Use an adapter that was trained on this model."
        )
        found.append((adapter.tensors, adapter.scale * weight))
    return found
