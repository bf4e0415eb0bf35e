"""A training step takes few kernels on graphics processors: what need not go through memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from bitfabric.compiler import CompileOptions, LoraOptions
from bitfabric.compiler.pipeline import build_graph, fuse
from bitfabric.targets import Target, get_target
from tvm import relax

from ..parity.conftest import BASE

OPTIONS = CompileOptions(context=8, lora=LoraOptions(rank=2))


def _kernels(function: str, target: Target | None, options: CompileOptions = OPTIONS) -> Counter:
    """Return how often a function calls each kernel."""
    module, found = fuse(build_graph(BASE, replace(options, recompute="all"), target)), Counter()

    def visit(node: relax.Expr) -> None:
        if isinstance(node, relax.Call) and getattr(node.op, "name", "").startswith(
            "relax.call_tir"
        ):
            kernel = module[node.args[0]].attrs.get("fabric.kernel", "elementwise")
            found[str(kernel)] += 1

    relax.analysis.post_order_visit(module[function], visit)
    return found


def test_norms_and_residuals_belong_to_the_projections() -> None:
    gpu = get_target("opencl")
    assert _kernels("layer_forward", gpu) == {
        "fused_bitlinear": 4, "attention": 1
    }  # fmt: skip
    # The last projection is not computed again, and nothing is added up by itself.
    assert _kernels("layer_vjp", gpu) == {
        "fused_bitlinear": 3, "attention": 1, "gated_activation": 1,
        "bitlinear_vjp": 4, "attention_vjp": 1, "gated_norm_vjp": 1, "rms_norm_vjp": 3,
    }  # fmt: skip


def test_a_processor_keeps_them_apart() -> None:
    found = _kernels("layer_forward", get_target("cpu"))
    assert found["rms_norm"] == 4
    assert found["elementwise"] == 2
    assert "fused_bitlinear" not in found


def test_with_dropout_the_adapters_have_an_input_of_their_own() -> None:
    options = replace(OPTIONS, lora=LoraOptions(rank=2, dropout=0.1))
    found = _kernels("layer_forward", get_target("opencl"), options)
    assert found["dropout"] == 4
    assert found["rms_norm"] == 4


def test_the_squares_of_all_layers_are_one_tensor() -> None:
    module = build_graph(BASE, OPTIONS)
    assert list(module["gradient_squares"].ret_ty.shape) == [BASE.num_layers]
