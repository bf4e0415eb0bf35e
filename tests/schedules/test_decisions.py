"""Rules ask for numbers, and compute the same whatever they are told."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache

import pytest
import tvm
from bitfabric.compiler import CompileOptions, LoraOptions
from bitfabric.compiler.tuning.arguments import arguments_of
from bitfabric.compiler.tuning.kernels import Kernel, kernels_of
from bitfabric.compiler.tuning.worker import built
from bitfabric.runtime.kernel_bench import KernelBench
from bitfabric.schedules import FAMILIES
from bitfabric.schedules.decisions import choose, choose_next, deciding, given
from bitfabric.targets import Target, host_cpu
from tvm import tirx

from ..parity.conftest import BASE
from .kernel_harness import every_gpu, every_target

OPTIONS = CompileOptions(context=40, lora=LoraOptions(rank=5))
ASKING = {
    "accumulate", "adamw", "append_kv", "attention", "attention_vjp", "bitlinear", "bitlinear_vjp",
    "cached_attention", "decode_attention", "embed", "fused_bitlinear", "gated_activation",
    "gated_activation_vjp", "head_loss", "head_loss_forward", "logits", "rms_norm", "rms_norm_vjp",
    "sum_squares",
}  # fmt: skip


def test_without_a_record_the_default_is_taken() -> None:
    assert choose("tile", (1, 2, 4), 2) == 2
    with deciding({}):
        assert choose("tile", (1, 2, 4), 2) == 2


def test_a_recorded_value_is_taken_where_it_is_valid() -> None:
    with deciding({"tile": (8, 3), "unroll": 3}) as asked:
        assert choose("tile", ((6, 4), (8, 3)), (6, 4)) == (8, 3)
        assert choose("unroll", (1, 2), 1) == 1
    assert asked.values == {"tile": (8, 3), "unroll": 1}
    assert list(asked.choices) == ["tile", "unroll"]
    assert asked.choices["unroll"].options == (1, 2)
    assert choose("unroll", (1, 2, 3), 1) == 1


def test_a_decision_is_made_once() -> None:
    answers = iter((2, 4))
    with deciding(lambda choice: next(answers)):
        assert [choose("tile", (1, 2, 4), 1) for _ in range(3)] == [2, 2, 2]


def test_a_decision_made_several_times_has_a_name_each_time() -> None:
    with deciding({"tile": 2, "tile 2": 4}) as asked:
        assert [choose_next("tile", (1, 2), 1), choose_next("tile", (1, 4), 8)] == [2, 4]
    assert asked.choices["tile 2"].options == (1, 4, 8)
    assert choose_next("tile", (1, 2), 3) == 3


def test_a_value_that_a_rule_does_not_accept_is_not_taken() -> None:
    with deciding({"trace": "good"}) as asked:
        assert given("trace", lambda value: 1 if value == "bad" else None) is None
        assert asked.values == {}
        assert given("trace", lambda value: f"{value} one") == "good one"
    assert asked.values == {"trace": "good"}
    with deciding(lambda choice: choice.options[0]):
        assert given("trace", lambda value: value) is None
    assert given("trace", lambda value: value) is None


def test_two_questions_of_one_name_are_a_mistake() -> None:
    with deciding({}):
        choose("tile", (1, 2), 1)
        with pytest.raises(ValueError, match="two different decisions"):
            choose("tile", (1, 4), 1)
    with pytest.raises(ValueError, match="none of its options"):
        choose("tile", (1, 2), 3)


def test_an_inner_scope_does_not_leak() -> None:
    with deciding({"tile": 4}) as outer:
        with deciding({"tile": 2}) as inner:
            choose("tile", (1, 2, 4), 1)
        assert choose("tile", (1, 2, 4), 1) == 4
    assert (outer.values, inner.values) == ({"tile": 4}, {"tile": 2})


@lru_cache
def kernels(target: Target) -> list[Kernel]:
    """Every kernel with decisions of a tiny model, odd in every size that may be."""
    return kernels_of(BASE, target, OPTIONS)


def compare(kernel: Kernel, vectors: int) -> list[dict]:
    """Run a kernel by random decisions beside its default; gives what was wrong."""
    bench = KernelBench(kernel.target.device)

    def code(function: tirx.PrimFunc) -> Callable:
        return built(tvm.ir.save_json(function), kernel.target)["main"]

    function, _ = kernel.lay_out()
    arguments = arguments_of(kernel.signature.kernel, kernel.arguments)
    bench.take(code(function), arguments)
    rng = random.Random(kernel.signature.key)
    wrong = []
    for _ in range(vectors):
        function, asked = kernel.lay_out(lambda choice: rng.choice(choice.options))
        found = bench.compare(code(function), 0.0)
        if "failed" in found:
            wrong.append({**found, "decisions": asked.values})
    return wrong


def one_of_each(target: Target) -> dict[str, Kernel]:
    return {kernel.signature.kernel: kernel for kernel in reversed(kernels(target))}


def test_every_rule_of_note_asks() -> None:
    # Only a validation without training calls the last. What no rule of ours lays out asks, too.
    found = {kernel.signature.kernel for kernel in kernels(host_cpu())}
    assert found >= ASKING - {"head_loss_forward"}


@pytest.mark.parametrize("name", sorted(ASKING - {"head_loss_forward"}))
def test_decisions_change_no_result(name: str) -> None:
    assert compare(one_of_each(host_cpu())[name], 1) == []


@pytest.mark.slow
@every_target
def test_no_decision_changes_a_result_on_any_target(target: Target) -> None:
    for kernel in kernels(target):
        assert compare(kernel, 6) == [], kernel.signature.title


FIXED = {"compressed_adamw", "copy_cache", "dense", "dense_vjp", "dropout", "rope_table"}
"""Kernels whose layout is what their data is laid out by, or that no BitNet's step has."""
SHARED = {"bitlinear", "cached_attention"}
"""Kernels whose decisions are about tiles in shared memory."""


@every_gpu
def test_every_rule_of_a_device_asks(target: Target) -> None:
    """As many kernels have something to decide as are laid out by rules of ours."""
    asking = set(one_of_each(target))
    # The gate's adjoint alone is of models without a norm behind it.
    absent = {"*", "head_loss_forward", "gated_activation_vjp", *FIXED}
    absent |= set() if "shared_memory" in target.features else SHARED
    assert {rule.kernel for rule in FAMILIES["gpu"]} - absent <= asking


@every_gpu
@pytest.mark.parametrize(
    "name",
    [
        "fused_bitlinear",
        pytest.param("bitlinear_vjp", marks=pytest.mark.slow),
        pytest.param("attention", marks=pytest.mark.slow),
        "sum_squares",
    ],
)
def test_decisions_change_no_result_on_a_device(target: Target, name: str) -> None:
    assert compare(one_of_each(target)[name], 2) == []


@pytest.mark.slow
@every_gpu
def test_no_decision_changes_a_result_on_any_device(target: Target) -> None:
    for kernel in kernels(target):
        assert compare(kernel, 4) == [], kernel.signature.title
