"""Schedules that MetaSchedule found, replayed on the kernels that no rule of ours lays out.

A trace is the list of TVM's schedule primitives with their sampled numbers. Each keeps what a
kernel computes, so a trace from another shape can be slow or not fit, but never wrong. Primitives
that bring code of their own along, as TVM's tensor intrinsics and pragmas can, are not replayed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import Trace

from ..targets import Target
from .decisions import given
from .tir import static

TRACE = "trace"
"""The decision: a trace as JSON."""
PRIMITIVES = frozenset(
    {
        "AddUnitLoop", "Annotate", "Bind", "CacheRead", "CacheWrite", "ComputeAt", "ComputeInline",
        "DecomposeReduction", "EnterPostproc", "Fuse", "GetChildBlocks", "GetConsumers",
        "GetLoops", "GetOutputBlocks", "GetProducers", "GetSBlock", "Parallel", "RFactor",
        "Reorder", "ReverseComputeAt", "ReverseComputeInline", "SampleCategorical",
        "SampleComputeLocation", "SamplePerfectTile", "Split", "StorageAlign", "Unannotate",
        "Unroll", "Vectorize",
    }
)  # fmt: skip
ANNOTATIONS = ("meta_schedule.", "pragma_auto_unroll_max_step", "pragma_unroll_explicit")
"""How the keys begin that a trace may annotate."""


def tuned(function: tirx.PrimFunc, target: Target) -> tirx.PrimFunc | None:
    """Return a kernel of plain blocks laid out by its record's trace; None without one that fits.

    Kernels with variable extents have no trace: its numbers divide extents.
    """
    if any(static(extent) is None for p in function.params for extent in p.shape):
        return None
    return given(TRACE, lambda text: replayed(function, str(text), target))


def stored(trace: Trace) -> str:
    """Return a trace as a record keeps it."""
    return json.dumps(_plain(trace.as_json()), separators=(",", ":"))


def replayed(function: tirx.PrimFunc, text: str, target: Target) -> tirx.PrimFunc | None:
    """Return a kernel laid out by a stored trace; None where that does not fit it or the target."""
    try:
        steps = json.loads(text)
        if not all(_is_harmless(step) for step in steps[0]):
            return None
        schedule = Schedule(function)
        Trace.apply_json_to_schedule(steps, schedule)
    except Exception:
        # TVM has an exception for each thing that can be wrong with a trace.
        return None
    if not _fits(schedule, target):
        return None
    laid_out = schedule.mod["main"]
    return laid_out.with_attrs(dict(function.attrs.items()) if function.attrs else {})


def _is_harmless(step: list[Any]) -> bool:
    """Tell whether a step only moves the kernel's own loops and blocks."""
    kind, _, attributes, _ = step
    if kind in ("Annotate", "Unannotate"):
        return str(attributes[0]).startswith(ANNOTATIONS)
    return kind in PRIMITIVES


def _fits(schedule: Schedule, target: Target) -> bool:
    """Tell whether every block runs in a launch, of no more threads than the target has.

    On a processor there are no launches.
    """
    if target.family == "cpu":
        return not any(_bindings(schedule))
    assert target.limits is not None
    for bound in _bindings(schedule):
        threads = math.prod(n for tag, n in bound if tag.startswith("threadIdx"))
        if not bound or threads > target.limits.max_threads:
            return False
    return True


def _bindings(schedule: Schedule) -> Iterator[list[tuple[str, int]]]:
    """Yield for each block the launch's axes among its loops, with their extents."""
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        loops = [schedule.get(loop) for loop in schedule.get_loops(block)]
        yield [
            (str(loop.thread_binding.thread_tag), int(loop.extent))
            for loop in loops
            if loop.thread_binding is not None
        ]


def _plain(value: Any) -> Any:
    """Return TVM's objects as JSON has them."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (tirx.IntImm, tirx.FloatImm)):
        return value.value
    return [_plain(item) for item in value]
