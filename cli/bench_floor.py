"""The least time that a work can take on a machine, by its measured rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..runtime.measure import Work

Rates = Mapping[str, float | None]
"""Of a processor ``float32_gflops``, ``int8_gops`` and ``read_gb_s``; of a device
``matrix_tflops`` and ``copy_gb_s``."""


def floor(manifest: Mapping[str, Any], work: Work, rates: Rates) -> dict[str, Any]:
    """Return the speed that nothing can exceed, and what it counts.

    Writing a token reads every packed weight and the head once, whatever the number of sequences.
    Training multiplies every weight and token twice in earnest, forward and to the layer's input;
    the forward pass is computed anew in the backward, so that it is thrice in all. Reading a
    prompt multiplies once, and by the head for the last token alone. Frozen weights have no
    gradient; adapters and attention are left out.

    Parameters
    ----------
    manifest : mapping
        Of the bundle.
    work : Work
        What is done.
    rates : mapping
        The machine's.

    Returns
    -------
    dict
        ``tokens_per_s`` or None, ``with_recompute`` (the same with what is computed twice;
        training alone), and ``counted`` or ``reason``, a sentence.
    """
    if work.kind == "decode":
        rate = rates.get("read_gb_s") or rates.get("copy_gb_s")
        size = weight_bytes(manifest)
        return _found(
            [(size / work.batch, rate and 1e9 * rate)],
            f"{size / 1e6:,.1f} MB of packed weights and head, read once a token",
        )
    ternary, head = _weights(manifest["model"]["config"])
    products = rates.get("matrix_tflops")
    forward, backward = (
        (1e12 * products, 1e12 * products)
        if products
        else (1e9 * (rates.get("int8_gops") or 0.0), 1e9 * (rates.get("float32_gflops") or 0.0))
    )
    if work.kind == "prefill":
        return _found(
            [(2.0 * ternary, forward), (2.0 * head / work.tokens, backward)],
            "2 operations for each weight and token",
        )
    useful = [(2.0 * ternary, forward), (2.0 * ternary + 4.0 * head, backward)]
    found = _found(useful, "4 operations for each weight and token; 6 where all is recomputed")
    again = _found([*useful, (2.0 * ternary, forward)], "")
    return {**found, "with_recompute": again["tokens_per_s"]}


def _found(parts: Sequence[tuple[float, float | None]], counted: str) -> dict[str, Any]:
    """Return a floor of some amounts a token, each at its rate."""
    if not all(rate for _, rate in parts):
        return {"tokens_per_s": None, "reason": "the machine's rate was not measured"}
    seconds = sum(amount / rate for amount, rate in parts if rate)
    return {"tokens_per_s": 1.0 / seconds, "counted": counted}


def weight_bytes(manifest: Mapping[str, Any]) -> int:
    """Return the bytes of all layers' tensors and of the head, which may be the embedding."""
    ends, *layers = (entry["tensors"] for entry in manifest["weights"])
    untied = any(spec["name"].startswith("head") for spec in ends)
    head = [s for s in ends if not (untied and s["name"].startswith("embedding"))]
    return sum(_size(spec) for tensors in (head, *layers) for spec in tensors)


def _size(spec: Mapping[str, Any]) -> int:
    width = {"int8": 1, "float16": 2, "float32": 4, "int32": 4}[spec["dtype"]]
    return width * math.prod(spec["shape"])


def _weights(config: Mapping[str, Any]) -> tuple[float, float]:
    """Return the ternary weights and those of the head."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    attention = config["num_heads"] * config["head_dim"]
    kv = config["num_kv_heads"] * config["head_dim"]
    layer = hidden * (2 * attention + 2 * kv + 3 * ffn)
    return float(config["num_layers"] * layer), float(config["vocab_size"] * hidden)
