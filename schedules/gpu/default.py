"""The rule for kernels without one of their own: elementwise programs and simple reductions.

Every block of the program becomes a launch with a thread for each result; neighbouring threads have
neighbouring elements.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.analysis import SBlockInfo, normalize_prim_func
from tvm.s_tir.schedule import ScheduleError

from ...targets import Target
from ..trace import tuned
from .elements import threads
from .kernel import Gpu


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
    outer = loops[:spatial]
    if not outer:
        outer = [schedule.add_unit_loop(loops[0] if loops else block.block_rv)]
    group, thread = schedule.split(schedule.fuse(*outer), factors=[None, threads])
    schedule.bind(group, "blockIdx.x")
    schedule.bind(thread, "threadIdx.x")
    return True
