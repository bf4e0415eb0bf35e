"""A token takes few kernels: each costs more to start than to run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bitfabric.compiler import CompileOptions
from bitfabric.compiler.pipeline import build_graph, fuse
from bitfabric.models import ModelConfig
from tvm import relax

from ..parity.conftest import BASE

CONFIGS = {
    "norms before every projection": BASE,
    "two norms a layer": replace(BASE, attention_sub_norm=False, ffn_sub_norm=False),
}


def _kernels(config: ModelConfig, function: str) -> int:
    """Return how many kernels a function of a model calls."""
    module, found = fuse(build_graph(config, CompileOptions(context=8))), 0

    def visit(node: relax.Expr) -> None:
        nonlocal found
        if isinstance(node, relax.Call) and getattr(node.op, "name", "").startswith(
            "relax.call_tir"
        ):
            found += 1

    relax.analysis.post_order_visit(module[function], visit)
    return found


@pytest.mark.parametrize("config", list(CONFIGS.values()), ids=list(CONFIGS))
def test_a_token_takes_five_kernels_a_layer(config: ModelConfig) -> None:
    one, three = (_kernels(replace(config, num_layers=n), "decode") for n in (1, 3))
    # Beside the layers the embedding, the last norm and the head.
    assert (one, three) == (5 + 3, 3 * 5 + 3)
