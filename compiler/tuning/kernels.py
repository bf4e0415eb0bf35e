"""The distinct kernels of a model on a target, and how often a step of each kind calls them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import tvm
from tvm import relax, tirx

from ...models.config import ModelConfig
from ...schedules import schedule
from ...schedules.decisions import Asked, Supply, Value, deciding
from ...targets import Target
from ..options import CompileOptions
from ..pipeline import build_graph, fuse
from .signature import Signature, signature_of

WORKS = {
    "training": ("train_step", "gradient_squares", "update"),
    "prefill": ("prefill",),
    "decode": ("decode",),
}
"""The functions that make up a step of each kind of work."""
CAPACITY = 272
"""Positions of the cache in measurements: an odd number of vectors, as the engine makes it."""


@dataclass
class Kernel:
    """One kernel with its shapes.

    Attributes
    ----------
    function : tirx.PrimFunc
        It, as yet unscheduled.
    target : Target
        What it is for.
    signature : Signature
        What it is.
    calls : dict of str to int
        Calls in a step of each kind of work.
    sizes : dict of str to int
        What its variable extents are in measurements, by name.
    """

    function: tirx.PrimFunc
    target: Target
    signature: Signature
    calls: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def lay_out(
        self, answers: dict[str, Value] | Supply | None = None
    ) -> tuple[tirx.PrimFunc, Asked]:
        """Return the kernel laid out by some decisions, and what its rule asked for.

        Raises
        ------
        Exception
            Whatever a rule raises that does not bear the decisions.
        """
        with deciding(answers or {}) as asked:
            _, function = schedule(self.function, self.target)
        return function, asked

    @property
    def arguments(self) -> list[tuple[str, list[int]]]:
        """Dtype and extents of each argument in measurements."""
        return measured_arguments(self.function, self.sizes)


def measured_sizes(options: CompileOptions) -> dict[str, int]:
    """Return what variable extents are in measurements: a prompt is as long as a training row."""
    sizes = {"n": options.context, "s": 1, "r": options.lora.rank, "b": 1, "batch": 1}
    return sizes | {"m": CAPACITY, "capacity": CAPACITY}


def measured_arguments(
    function: tirx.PrimFunc, sizes: dict[str, int]
) -> list[tuple[str, list[int]]]:
    """Return dtype and extents of each argument of a kernel, with variable extents by name."""

    def measured(extent: Any) -> int:
        if isinstance(extent, (int, tirx.IntImm)):
            return int(extent)
        return sizes.get(str(extent), sizes["n"])

    return [(str(p.dtype), [measured(extent) for extent in p.shape]) for p in function.params]


def kernels_of(config: ModelConfig, target: Target, options: CompileOptions) -> list[Kernel]:
    """Return the kernels whose rules leave something open, those of training first.

    Parameters
    ----------
    config : ModelConfig
        The model.
    target : Target
        What it is compiled for.
    options : CompileOptions
        Its sizes; a prompt is measured as long as a training row.
    """
    module = fuse(build_graph(config, options, target))
    calls = {work: _calls(module, entries) for work, entries in WORKS.items()}
    sizes = measured_sizes(options)
    found: dict[str, Kernel] = {}
    for variable, function in module.functions.items():
        if not isinstance(function, tirx.PrimFunc):
            continue
        signature = signature_of(function)
        kernel = found.get(signature.key)
        if kernel is None:
            kernel = Kernel(function, target, signature, dict.fromkeys(WORKS, 0), sizes)
            if not any(len(c.options) != 1 for c in kernel.lay_out()[1].choices.values()):
                continue
            found[signature.key] = kernel
        for work, counted in calls.items():
            kernel.calls[work] += counted[variable.name_hint]
    return [kernel for kernel in found.values() if any(kernel.calls.values())]


def _calls(module: tvm.IRModule, entries: tuple[str, ...]) -> Counter[str]:
    """Return how often a run of some functions calls each tensor program."""
    names = {variable.name_hint: function for variable, function in module.functions.items()}

    @cache
    def within(name: str) -> tuple[tuple[str, int], ...]:
        counted: Counter[str] = Counter()

        def visit(node: relax.Expr) -> None:
            if not isinstance(node, relax.Call):
                return
            called = node.op if isinstance(node.op, tvm.ir.GlobalVar) else None
            if getattr(node.op, "name", "").startswith("relax.call_tir"):
                called = node.args[0]
            if called is None:
                return
            inner = names[called.name_hint]
            if isinstance(inner, relax.Function):
                counted.update(dict(within(called.name_hint)))
            else:
                counted[called.name_hint] += 1

        relax.analysis.post_order_visit(names[name], visit)
        return tuple(counted.items())

    total: Counter[str] = Counter()
    for entry in entries:
        total.update(dict(within(entry)))
    return total
