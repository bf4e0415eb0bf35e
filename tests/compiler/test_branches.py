"""Which launches of a kernel need each other, and the graph that the runtime makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bitfabric.compiler import CompileOptions
from bitfabric.compiler.branches import branches, launch_needs
from bitfabric.compiler.pipeline import apply_schedules, build_graph, fuse, lower
from bitfabric.models import open_model
from bitfabric.runtime.cuda.branches import dependencies, launch_name
from bitfabric.schedules import schedule
from bitfabric.targets import get_target

from ..schedules.linear_reference import LinearCase
from ..schedules.test_cpu_bitlinear import _backward, _group


def _needs(tokens: int) -> list[list[int]]:
    case = LinearCase(_group(256, (176, 336), (True, True)), tokens, 8, 0.5, False)
    return launch_needs(schedule(_backward(case), get_target("cuda-sm90"))[1])


def test_gradients_of_adapters_need_their_factors_alone() -> None:
    # Factors; the product; its parts' sum; the gradients, and the sum of their slabs.
    assert _needs(128) == [[], [0], [1], [0]]
    assert _needs(1100) == [[], [0], [1], [0], [3]]


def test_what_the_host_decides_is_a_chain() -> None:
    config = replace(open_model("nano").config, num_layers=1)
    target = get_target("cuda-sm90")
    options = CompileOptions(context=64)
    module, _ = apply_schedules(fuse(build_graph(config, options, target)), target)
    found = branches(lower(module))
    # Prompts have as many launches as their length asks for.
    assert not any(name.startswith("bitlinear_kernel") for name in found)
    assert any(name.startswith("bitlinear_vjp") for name in found)
    for needs in found.values():
        assert needs[0] == []
        assert all(i < index for index, before in enumerate(needs) for i in before)


NEEDS = {"a": [[], [0], [0], [2]], "b": [[], []]}


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        ("xax", [[], [0], [1], [1], [3], [2, 4]]),
        ("ab", [[], [0], [0], [2], [1, 3], [1, 3]]),
        ("xbbx", [[], [0], [0], [1, 2], [1, 2], [3, 4]]),
        ("xx", [[], [0]]),
    ],
)
def test_a_kernel_waits_for_all_of_the_one_before(kernels: str, expected: list) -> None:
    names = [
        launch_name(kernel, i) for kernel in kernels for i in range(len(NEEDS.get(kernel, [[]])))
    ]
    assert dependencies(names, NEEDS) == expected


def test_other_launches_than_the_manifest_has_are_a_chain() -> None:
    names = [launch_name("a", i) for i in (0, 1, 3)]
    assert dependencies(names, NEEDS) == [[], [0], [1]]
