"""The rule for kernels without one of their own: elementwise programs and simple reductions.

Every block of the program becomes a launch with a thread for each result; neighbouring threads have
neighbouring elements. Where sums and products of many float32 are all it has, a thread has four.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.ir import TensorLoad
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.analysis import SBlockInfo, normalize_prim_func
from tvm.s_tir.schedule import ScheduleError

from ...targets import Target
from ..tir import static
from ..trace import tuned
from .elements import threads
from .kernel import Gpu
from .vectors import LANES

MANY = 1 << 16
"""Elements from which on a thread has four: fewer are spread over more threads instead."""


def default(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out a program of plain blocks; None for others, and for types that a device may lack."""
    gpu, text = Gpu(target), function.script()
    if "float64" in text or ("float16" in text and "fp16" not in target.features):
        return None
    try:
        schedule = Schedule(function)
    except (ScheduleError, ValueError, RuntimeError):
        return None
    blocks = normalize_prim_func(schedule)
    if blocks is None:
        return None
    found = tuned(function, target)
    if found is not None:
        return found
    for block in blocks:
        if not _inlined(schedule, block) and not _laid_out(schedule, block, threads(gpu)):
            return None
    laid_out = schedule.mod["main"]
    return laid_out.with_attrs(dict(function.attrs.items()) if function.attrs else {})


def _inlined(schedule: Schedule, block: SBlockInfo) -> bool:
    """Move an elementwise block into the one elementwise block that reads it; tell whether done."""
    consumers = schedule.get_consumers(block.block_rv)
    if not block.is_injective() or len(consumers) != 1:
        return False
    # A reduction would compute the element again at each step of its loops.
    kinds = {axis.iter_type for axis in schedule.get(consumers[0]).iter_vars}
    if kinds - {tirx.IterVar.DataPar}:
        return False
    try:
        schedule.compute_inline(block.block_rv)
    except ScheduleError:
        return False
    return True


def _laid_out(schedule: Schedule, block: SBlockInfo, threads: int) -> bool:
    """Bind a block's spatial loops to threads; tell whether the block is of a kind for that."""
    loops, kinds = schedule.get_loops(block.block_rv), block.dom_kind()
    spatial = len(kinds) - len(kinds.lstrip("S"))
    if set(kinds[spatial:]) - {"R"} or len(loops) != len(kinds):
        return False
    outer, lanes = loops[:spatial], None
    if _takes_vectors(schedule, block):
        *outer, last = outer
        last, lanes = schedule.split(last, factors=[None, LANES])
        outer.append(last)
    if not outer:
        outer = [schedule.add_unit_loop(loops[0] if loops else block.block_rv)]
    group, thread = schedule.split(schedule.fuse(*outer), factors=[None, threads])
    schedule.bind(group, "blockIdx.x")
    schedule.bind(thread, "threadIdx.x")
    if lanes is not None:
        schedule.vectorize(lanes)
    return True


def _takes_vectors(schedule: Schedule, block: SBlockInfo) -> bool:
    """Tell whether a block computes many float32, each of the same places of its inputs alone."""
    statement, extents = schedule.get(block.block_rv), [static(extent) for extent in block.dom()]
    if not extents or extents[-1] is None or extents[-1] % LANES:
        return False
    if None not in extents and math.prod(filter(None, extents)) < MANY:
        return False
    axes = [axis.var for axis in statement.iter_vars]
    for access in (*statement.reads, *statement.writes):
        places = [place.min for place in access.region]
        if str(access.source.dtype) != "float32" or len(places) != len(axes):
            return False
        if not all(place.same_as(axis) for place, axis in zip(places, axes, strict=True)):
            return False
    store = statement.body
    return isinstance(store, tirx.BufferStore) and _is_sum(store.value)


def _is_sum(value: Any) -> bool:
    """Tell whether a value is made of sums and products alone.

    Not every device's functions and choices are of vectors.
    """
    if isinstance(value, tirx.Add | tirx.Sub | tirx.Mul):
        return _is_sum(value.a) and _is_sum(value.b)
    return isinstance(value, TensorLoad | tirx.FloatImm)
