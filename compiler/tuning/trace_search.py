"""The search through MetaSchedule's space of a kernel that no rule of ours lays out.

MetaSchedule's evolutionary search proposes traces, its cost model picks among them; they are built,
checked and timed as every candidate is, which its own runners would not do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tvm
from tvm import tirx
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule import _ffi_api
from tvm.s_tir.meta_schedule.logging import get_logger, get_logging_func

from ...schedules.decisions import Asked
from ...schedules.trace import TRACE, stored
from ...targets import Target
from ..pipeline import tvm_target
from .search import Ledger, Values
from .spaces import space_of
from .trace_model import Model

POPULATION, GENERATIONS, MISSES = 32, 2, 2
"""Of the evolution between two batches."""
UNBOUNDED = 1 << 20
TRIES = 2
"""Batches in a row of traces that were all tried before, after which a space counts as searched."""


class TraceSearch(Ledger):
    """The search through one kernel's traces.

    Parameters
    ----------
    function : tirx.PrimFunc
        The kernel, as yet unscheduled.
    target : Target
        What it is for.
    model : Model
        The cost model of all such kernels.
    batch : int
        Candidates of a batch.
    seed : int
        Of everything random.
    seeds : sequence of dict
        Candidates to begin with, such as those that were best on other devices.
    """

    def __init__(
        self,
        function: tirx.PrimFunc,
        target: Target,
        model: Model,
        batch: int,
        seed: int,
        seeds: Sequence[Values] = (),
    ) -> None:
        super().__init__({})
        self.model = model
        self._seeds = [dict(values) for values in seeds if TRACE in values]
        self._candidates: dict[str, ms.MeasureCandidate] = {}
        self._waiting: list[str] = []
        self._context = _context(function, target, seed)
        spaces = self._context.generate_design_space()
        database = ms.database.MemoryDatabase()
        self._context.pre_tuning(UNBOUNDED, batch, spaces, database, model)

    def learn(self, asked: Asked) -> None:
        """Take nothing from what a rule asked for: the space is known."""

    def knows(self, values: Values) -> bool:
        """Tell whether a candidate of an earlier run is a trace."""
        return values.keys() == {TRACE}

    def propose(self, count: int) -> list[Values]:
        """Return up to `count` new candidates; none at the end."""
        chosen: dict[str, Values] = {}
        while self._seeds and len(chosen) < count:
            self._offer(chosen, str(self._seeds.pop(0)[TRACE]))
        for _ in range(TRIES):
            if len(chosen) >= count:
                break
            if not self._waiting:
                self._waiting = self._generated()
            while self._waiting and len(chosen) < count:
                self._offer(chosen, self._waiting.pop(0))
        self._exhausted = not chosen
        return list(chosen.values())

    def tell(self, results: list[tuple[Values, float]]) -> None:
        """Note the ratios of a batch, and let the model learn from them."""
        super().tell(results)
        known = [(self._candidates.pop(str(v.get(TRACE)), None), ratio) for v, ratio in results]
        told = [(candidate, ratio) for candidate, ratio in known if candidate is not None]
        if told:
            candidates = [candidate for candidate, _ in told]
            found = [_result(ratio) for _, ratio in told]
            self._context.notify_runner_results(candidates, found)
            self.model.update(self._context, candidates, found)

    def _offer(self, to: dict[str, Values], trace: str) -> None:
        values: Values = {TRACE: trace}
        if self.is_new(values):
            to[trace] = values

    def _generated(self) -> list[str]:
        """Return the traces of the next batch."""
        found = []
        for candidate in self._context.generate_measure_candidates() or ():
            trace = stored(candidate.sch.trace)
            self._candidates[trace] = candidate
            found.append(trace)
        return found


def _context(function: tirx.PrimFunc, target: Target, seed: int) -> ms.TuneContext:
    """Return what MetaSchedule calls the tuning of a kernel."""
    options = tvm_target(target)
    if target.family == "cpu":
        # The machines that the records serve differ; enough shares for many threads serve few too.
        options = tvm.target.Target({**dict(target.options), "num-cores": 8})
    strategy = ms.search_strategy.EvolutionarySearch(
        population_size=POPULATION,
        init_min_unmeasured=1,
        genetic_num_iters=GENERATIONS,
        genetic_max_fail_count=MISSES,
        max_fail_count=MISSES,
    )
    # TVM's own constructor first parses all its tensor intrinsics, for half a minute.
    context = _ffi_api.TuneContext(
        tvm.IRModule({"main": function.with_attr("global_symbol", "main")}),
        options,
        space_of(function, target),
        strategy,
        "kernel",
        1,
        seed % (1 << 30) + 1,
        get_logging_func(get_logger(__name__)),
    )
    _ffi_api.TuneContextInitialize(context)
    return context


def _result(ratio: float) -> ms.runner.RunnerResult:
    """Return a ratio as what MetaSchedule's runners give."""
    if math.isinf(ratio):
        return ms.runner.RunnerResult(None, "it is of no use")
    return ms.runner.RunnerResult([ratio], None)
