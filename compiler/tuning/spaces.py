"""MetaSchedule's design spaces for kernels that no rule of ours lays out.

Kernels with sums get MetaSchedule's own rules for processors; on graphics processors those that our
lowering knows, which has no virtual threads and no sums across threads but our own. Its rules leave
element-wise kernels nearly nothing to decide, so these get one of ours, made of its sampling
primitives: how the elements are shared among threads, and how many make a vector.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.dlight.analysis import normalize_prim_func
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ...targets import Target

VECTORS = {"cpu": 64, "gpu": 4}
"""The most elements of a vector, for each family."""
SHARE = 1 << 16
"""The most steps of a thread's share on a processor."""
THREADS = [32, 64, 128, 256, 512, 1024]


@derived_object
class Elements(ms.schedule_rule.PyScheduleRule):
    """Shares the elements of an injective block among threads, with vectors along the last axis.

    Parameters
    ----------
    target : Target
        The target.
    """

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

    def _initialize_with_tune_context(self, context: ms.TuneContext) -> None:
        """The rule needs nothing of it."""

    def apply(self, schedule: Schedule, block: SBlockRV) -> list[Schedule]:
        """Return the one space of a block: it, with its loops split by sampled factors."""
        loops = schedule.get_loops(block)
        if not loops:
            return [schedule]
        *outer, last = loops
        step, vector = self._split(schedule, last, VECTORS[self.target.family])
        whole = schedule.fuse(*outer, step)
        if self.target.family == "cpu":
            share, _ = self._split(schedule, whole, SHARE)
            schedule.parallel(share)
        else:
            assert self.target.limits is not None
            group, thread = self._split(schedule, whole, self.target.limits.max_threads)
            schedule.bind(group, "blockIdx.x")
            schedule.bind(thread, "threadIdx.x")
        schedule.vectorize(vector)
        return [schedule]

    @staticmethod
    def _split(schedule: Schedule, loop: LoopRV, most: int) -> list:
        factors = schedule.sample_perfect_tile(loop, n=2, max_innermost_factor=most)
        return schedule.split(loop, factors=factors)

    def clone(self) -> Elements:
        """Return another one."""
        return Elements(self.target)


def space_of(function: tirx.PrimFunc, target: Target) -> ms.space_generator.SpaceGenerator:
    """Return the design space of a kernel of plain blocks with static extents."""
    blocks = normalize_prim_func(Schedule(function)) or []
    post = [ms.postproc.DisallowDynamicLoop(), ms.postproc.RewriteReductionBlock()]
    if target.family == "gpu":
        post = [*post, ms.postproc.RewriteParallelVectorizeUnroll(), ms.postproc.VerifyGPUCode()]
    tiles = {ms.mutator.MutateTileSize(): tirx.FloatImm("float64", 1.0)}
    if all(block.is_injective() for block in blocks):
        rules = [_inlining(target), Elements(target)]
        return _space(rules, post, tiles)
    if target.family == "cpu":
        return _space("llvm", "llvm", "llvm")
    rule, limits = ms.schedule_rule, target.limits
    assert limits is not None
    threads = [count for count in THREADS if count <= limits.max_threads]
    rules = [
        _inlining(target),
        rule.ParallelizeVectorizeUnroll(-1, -1, [0, 4, 16, 64], unroll_explicit=True),
        rule.AutoBind(256, threads, limits.max_threads),
    ]
    half = tirx.FloatImm("float64", 0.5)
    choices = {ms.mutator.MutateUnroll(): half, ms.mutator.MutateThreadBinding(): half}
    return _space(rules, post, choices)


def _space(rules: Any, post: Any, mutators: Any) -> ms.space_generator.SpaceGenerator:
    return ms.space_generator.PostOrderApply(
        sch_rules=rules, postprocs=post, mutator_probs=mutators
    )


def _inlining(target: Target) -> ms.schedule_rule.ScheduleRule:
    return ms.schedule_rule.AutoInline(
        into_producer=False,
        into_consumer=True,
        inline_const_tensor=True,
        disallow_if_then_else=target.family == "cpu",
        require_injective=False,
        require_ordered=False,
    )
