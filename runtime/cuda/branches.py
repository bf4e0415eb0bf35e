"""A recorded graph whose launches wait for what they need alone, side by side where they can.

A recording is a chain. Which launches of a kernel need each other is in the bundle's manifest;
those of the next kernel need all of this one's, whose memory they may be given.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

from .devices import Driver
from .nodes import add_kernel, graph_nodes, kernel_name, new_graph

Needs = Mapping[str, Sequence[Sequence[int]]]
"""For each kernel's launches the earlier ones of the same kernel that they need."""


def branched(graph: ctypes.c_void_p, needs: Needs) -> ctypes.c_void_p | None:
    """Return a graph of the same launches; None where a chain is all there can be."""
    driver = Driver()
    nodes, only_kernels = graph_nodes(driver, graph)
    names = [kernel_name(driver, node) for node in nodes]
    if not only_kernels or not any(launch_name(kernel, 0) in names for kernel in needs):
        return None
    whole = new_graph(driver)
    made: list[ctypes.c_void_p] = []
    for node, before in zip(nodes, dependencies(names, needs), strict=True):
        made.append(add_kernel(driver, whole, [made[i] for i in before], node))
    return whole


def dependencies(names: Sequence[str], needs: Needs) -> list[list[int]]:
    """Return for each launch, by its name and in order, the earlier ones that it waits for."""
    found: list[list[int]] = []
    last: list[int] = []
    kernels = {launch_name(kernel, 0): kernel for kernel in needs}
    while len(found) < len(names):
        first, own = len(found), _needs_of(names[len(found) :], kernels, needs)
        for before in own:
            found.append([first + i for i in before] or last)
        needed = {i for before in own for i in before}
        last = [first + i for i in range(len(own)) if i not in needed]
    return found


def _needs_of(
    names: Sequence[str], kernels: Mapping[str, str], needs: Needs
) -> Sequence[Sequence[int]]:
    """Return what the launches of the first kernel need; of one alone where it has no branches."""
    kernel = kernels.get(names[0])
    if kernel is not None:
        expected = [launch_name(kernel, i) for i in range(len(needs[kernel]))]
        if list(names[: len(expected)]) == expected:
            return needs[kernel]
    return [[]]


def launch_name(kernel: str, index: int) -> str:
    """Return how TVM calls a kernel's launch."""
    return f"{kernel}_kernel" + (f"_{index}" if index else "")
