"""The rule that takes any kernel: threads over its rows, vectors along them, where that is safe."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.analysis import SBlockInfo, normalize_prim_func
from tvm.s_tir.schedule import LoopRV, ScheduleError

from ...targets import Target
from ..trace import tuned
from .isa import Isa
from .loops import PARALLEL_ELEMENTS

CHUNK = 4096
"""Elements of a thread's share of a kernel that has one axis only."""


def default(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out any kernel; one that is not made of plain blocks is returned as it is."""
    try:
        schedule = Schedule(function)
    except (ScheduleError, ValueError, RuntimeError):
        return function
    blocks = normalize_prim_func(schedule)
    if blocks is None:
        return function
    found = tuned(function, target)
    if found is not None:
        return found
    kept = [block for block in blocks if not _inlined(schedule, block)]
    for block in kept:
        if block.is_injective():
            _lay_out_elements(schedule, block, Isa(target).lanes)
        else:
            _lay_out_reduction(schedule, block)
    return schedule.mod["main"].with_attrs(dict(function.attrs.items()) if function.attrs else {})


def _inlined(schedule: Schedule, block: SBlockInfo) -> bool:
    """Move an elementwise block into the one elementwise block that reads it; tell whether done."""
    consumers = schedule.get_consumers(block.block_rv)
    if not block.is_injective() or len(consumers) != 1:
        return False
    # A reduction would compute the element again at each step of its loops.
    kinds = {axis.iter_type for axis in schedule.get(consumers[0]).iter_vars}
    if kinds - {tirx.IterVar.DataPar}:
        return False
    return _tried(lambda: schedule.compute_inline(block.block_rv))


def _tried(primitive: Callable[[], Any]) -> bool:
    """Apply a primitive, which changes nothing where its conditions do not hold."""
    try:
        primitive()
    except ScheduleError:
        return False
    return True


def _large(schedule: Schedule, loops: list[LoopRV]) -> bool:
    """Tell whether the loops hold enough elements for threads; unknown extents are taken to."""
    extents = [schedule.get(loop).extent for loop in loops]
    if not all(isinstance(extent, tirx.IntImm) for extent in extents):
        return True
    return math.prod(int(extent) for extent in extents) >= PARALLEL_ELEMENTS


def _lay_out_elements(schedule: Schedule, block: SBlockInfo, lanes: int) -> None:
    loops = schedule.get_loops(block.block_rv)
    if not loops:
        return
    large, (*outer, inner) = _large(schedule, loops), loops
    extent = schedule.get(inner).extent
    # A vector loop with a remainder becomes scalar code; LLVM then does better by itself.
    vector = isinstance(extent, tirx.IntImm) and int(extent) % lanes == 0
    if vector:
        inner, lane = schedule.split(inner, factors=[None, lanes])
        _tried(lambda: schedule.vectorize(lane))
    if large:
        if not outer:
            step = CHUNK // lanes if vector else CHUNK
            outer = [schedule.split(inner, factors=[None, step])[0]]
        _tried(lambda: schedule.parallel(schedule.fuse(*outer)))


def _lay_out_reduction(schedule: Schedule, block: SBlockInfo) -> None:
    loops, kinds = schedule.get_loops(block.block_rv), block.dom_kind()
    first = kinds.find("R")
    if first < 0 or len(loops) != len(kinds):
        return
    if first and _large(schedule, loops) and set(kinds[:first]) == {"S"}:
        _tried(lambda: schedule.parallel(schedule.fuse(*loops[:first])))
    _tried(lambda: schedule.decompose_reduction(block.block_rv, loops[first]))
