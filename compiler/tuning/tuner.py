"""The tuning of a model: trials go where the step is expected to gain most."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tvm import tirx

from ...schedules.decisions import Asked
from ...schedules.trace import TRACE
from ...targets import Target
from . import trace_model
from .applied import Tuning
from .cost_model import CostModel, Trial, features_of
from .history import learned, trials_of, tried
from .kernels import WORKS, Kernel
from .measure import Failed, Measured
from .pool import Pool
from .records import Device, Record, everything, record_of, user_file
from .search import Search, Values, identity
from .signature import distance
from .store import append, data_folder, file_name
from .trace_search import TraceSearch

BATCH = 4
"""Candidates of a kernel that are measured before another one's turn may come."""
QUICK_SECONDS, SURE_SECONDS, SURE_REPEATS = 0.15, 0.6, 3
"""Time to measure a candidate in; the same for one that is to become a record, and how often."""
WORTH = 0.99
"""A candidate is worth a second look below this part of the best time."""
SEEDS = 3
"""Decisions of other shapes that a search begins with."""


@dataclass
class Task:
    """A kernel being tuned.

    Attributes
    ----------
    kernel : Kernel
        The kernel.
    default : tirx.PrimFunc
        It by its default schedule.
    search : Search or TraceSearch
        The search through its decisions, or through MetaSchedule's space.
    seconds : float
        Time of a call by the default.
    share : float
        Part of the steps' time, the mean over the kinds of work.
    record : Record or None
        The best that is known.
    skipped : bool
        Whether an earlier run has searched it.
    """

    kernel: Kernel
    default: tirx.PrimFunc
    search: Search | TraceSearch
    seconds: float = 0.0
    share: float = 0.0
    record: Record | None = None
    skipped: bool = False

    @property
    def ratio(self) -> float:
        """Time of its record by the default's."""
        return 1.0 if self.record is None else min(self.record.ratio, 1.0)


@dataclass
class Progress:
    """Where a tuning stands.

    Attributes
    ----------
    task : Task
        The kernel that a candidate of was just measured.
    improved : bool
        Whether that gave a record.
    trials : int
        Candidates measured in this run.
    seconds : float
        Time since it began.
    failures : dict of str to int
        Candidates that failed, by how.
    """

    task: Task | None = None
    improved: bool = False
    trials: int = 0
    seconds: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)


class Tuner:
    """Tunes kernels on a device; every record is kept the moment it is found.

    Parameters
    ----------
    kernels : sequence of Kernel
        All kernels of a model.
    target : Target
        What they are for.
    device : Device
        What they are measured on.
    pool : Pool
        Measures them.
    resume : bool
        Whether to go on where earlier runs stopped, also with kernels that have a record.
    seed : int
        Of everything random.
    """

    def __init__(
        self,
        kernels: Sequence[Kernel],
        target: Target,
        device: Device,
        pool: Pool,
        resume: bool = False,
        seed: int = 0,
    ) -> None:
        self.target, self.device, self.pool = target, device, pool
        self.tuning = Tuning.of(target, device)
        self.progress = Progress()
        self._log = data_folder() / "trials" / file_name(target.name)
        self._others = [r for r in everything() if r.target != target.name and r.decisions]
        self._history = trials_of(kernel.signature.kernel for kernel in kernels)
        for record in self._others:
            if record.kernel.kernel in self._history and TRACE not in record.decisions:
                self._history[record.kernel.kernel] += learned(record)
        self._models = {name: CostModel(name) for name in self._history}
        for name, model in self._models.items():
            model.load()
            model.fit(self._history[name])
        self._traces = trace_model.load()
        own = {r.key: r for r in self.tuning.records if r.device == device}
        self.tasks = [self._task(kernel, own, resume, seed) for kernel in kernels]
        self._current: Task | None = None

    def _task(self, kernel: Kernel, own: dict[str, Record], resume: bool, seed: int) -> Task:
        function, asked = kernel.lay_out()
        key, search = kernel.signature.key, self._search_of(kernel, asked, seed)
        record = own.get(key)
        if resume:
            for values, ratio in tried(self._log, key, self.device):
                if search.knows(values):
                    search.tried.setdefault(identity(values), ratio)
        return Task(kernel, function, search, record=record, skipped=bool(record and not resume))

    def _search_of(self, kernel: Kernel, asked: Asked, seed: int) -> Search | TraceSearch:
        """Return the search through what a kernel's rule leaves open: listed values, or a trace."""
        signature, random_seed = kernel.signature, f"{seed} {kernel.signature.key}"
        if TRACE in asked.choices:
            number = random.Random(random_seed).getrandbits(30)
            batch = BATCH * self.pool.size
            what = kernel.function, self.target, self._traces
            return TraceSearch(*what, batch, number, self._seeds(kernel))
        return Search(
            asked=asked,
            features=lambda values: features_of(values, signature.sizes, self.target),
            model=self._models[signature.kernel],
            rng=random.Random(random_seed),
            seeds=self._seeds(kernel),
        )

    def _seeds(self, kernel: Kernel) -> list[Values]:
        """Return what was best for kernels of the same form, the nearest shapes first.

        Those of this target come before others'.
        """
        found: list[tuple[int, float, int, Record]] = []
        for rank, records in enumerate((self.tuning.records, self._others)):
            for i, record in enumerate(records):
                apart = distance(record.kernel, kernel.signature)
                if apart is not None and record.decisions:
                    found.append((rank, apart, i, record))
        return [dict(record.decisions) for *_, record in sorted(found, key=lambda f: f[:3])[:SEEDS]]

    def weigh(self, report: Callable[[str, float], None]) -> None:
        """Measure every kernel's default and its share of the steps' time."""
        for index, task in enumerate(self.tasks):
            report(task.kernel.signature.title, index / len(self.tasks))
            if task.record is not None and task.skipped:
                task.seconds = task.record.default_seconds
            else:
                task.seconds = self._take(task)
        for work in WORKS:
            total = sum(t.seconds * t.kernel.calls[work] for t in self.tasks)
            for task in self.tasks:
                if total:
                    task.share += task.seconds * task.kernel.calls[work] / total / len(WORKS)

    def _take(self, task: Task) -> float:
        self._current = task
        return self.pool.take(task.kernel, task.default)

    def run(self, trials: int, seconds: float, report: Callable[[Progress], None]) -> None:
        """Search until the trials or the seconds are used up, or nothing is left to try.

        `report` is called after every candidate; what it raises ends the search.
        """
        try:
            self._search(trials, seconds, report)
        finally:
            for model in self._models.values():
                model.save()
            trace_model.save(self._traces)
        self._note_defaults()

    def _search(self, trials: int, seconds: float, report: Callable[[Progress], None]) -> None:
        start = time.monotonic()
        progress = self.progress
        while progress.trials < trials and time.monotonic() - start < seconds:
            open_tasks = [t for t in self.tasks if not t.skipped and t.search.expected_gain > 0]
            if not open_tasks:
                break
            task = max(open_tasks, key=lambda t: t.share * t.search.expected_gain)
            if self._current is not task:
                self._take(task)
            results = []
            # Each device has as many candidates of a batch as the only one would have.
            count = min(BATCH * self.pool.size, trials - progress.trials)
            for values, found, is_sure in self._measured(task, task.search.propose(count)):
                results.append((values, self._judged(task, values, found, is_sure)))
                progress.trials, progress.task = progress.trials + 1, task
                progress.seconds = time.monotonic() - start
                report(progress)
            task.search.tell(results)
            name = task.kernel.signature.kernel
            self._models[name].fit(self._history[name])

    def _measured(
        self, task: Task, proposals: list[Values]
    ) -> Iterator[tuple[Values, Measured | Failed, bool]]:
        """Measure those candidates that turn out to be none that was tried before.

        Yields each with what was found, and whether that is sure enough for a record.
        """
        laid: list[tuple[Values, tirx.PrimFunc]] = []
        for wanted in proposals:
            try:
                function, asked = task.kernel.lay_out(wanted)
            except Exception as error:
                # Rules are ours; a combination that one does not bear is only a bad candidate.
                yield wanted, Failed("build", str(error)[:200]), False
                continue
            task.search.learn(asked)
            values = dict(asked.values)
            if task.search.is_new(values) and all(values != other for other, _ in laid):
                laid.append((values, function))
            else:
                task.search.seen.add(identity(wanted))
        functions = [function for _, function in laid]
        quick = self.pool.compare_each(functions, QUICK_SECONDS)
        for (values, function), found in zip(laid, quick, strict=True):
            best = min(task.search.best[1], task.ratio)
            if isinstance(found, Measured) and found.ratio < WORTH * best:
                yield values, self.pool.compare(function, SURE_SECONDS, SURE_REPEATS), True
            else:
                yield values, found, False

    def _judged(self, task: Task, values: Values, found: Measured | Failed, is_sure: bool) -> float:
        """Keep what was found of a candidate; return its time by the default's."""
        progress = self.progress
        progress.improved = False
        if isinstance(found, Failed):
            progress.failures[found.kind] = progress.failures.get(found.kind, 0) + 1
            ratio = float("inf")
        else:
            ratio = found.ratio
            if is_sure and found.high < 1 and found.ratio < task.ratio:
                self._keep(task, values, found)
        self._note(task, values, ratio)
        return ratio

    def _keep(self, task: Task, values: Values, found: Measured) -> None:
        """Make a candidate the kernel's record, on disk at once."""
        times = found.ratio * found.default_seconds, found.default_seconds
        task.record = record_of(
            self.target, self.device, task.kernel.signature, values, times, task.search.trials + 1
        )
        append(user_file(self.target.name), task.record.to_json())
        self.progress.improved = True

    def _note(self, task: Task, values: Values, ratio: float) -> None:
        """Remember a candidate, in this run and for later ones."""
        signature = task.kernel.signature
        # The model of traces looks at the program itself.
        features = {}
        if TRACE not in values:
            features = features_of(values, signature.sizes, self.target)
            self._history[signature.kernel].append(Trial(signature.key, features, ratio))
        line = {
            "kernel": signature.kernel,
            "key": signature.key,
            "device": self.device.title,
            "decisions": values,
            "features": features,
            "ratio": ratio if ratio < float("inf") else None,
        }
        append(self._log, line)

    def _note_defaults(self) -> None:
        """Keep that nothing beats the default of a kernel that was searched."""
        for task in self.tasks:
            if task.record is None and task.search.trials:
                task.record = record_of(
                    self.target,
                    self.device,
                    task.kernel.signature,
                    {},
                    (task.seconds, task.seconds),
                    task.search.trials,
                )
                append(user_file(self.target.name), task.record.to_json())
