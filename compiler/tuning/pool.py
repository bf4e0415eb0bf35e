"""Several devices of one kind, on which candidates are measured side by side."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType

from tvm import tirx

from .kernels import Kernel
from .measure import DeviceLostError, Failed, Measured, Measurer


class Pool:
    """Measurers that share the work; a context manager.

    One that has lost its device is left out, as long as another remains.

    Parameters
    ----------
    measurers : sequence of Measurer
        At least one.
    tell : callable
        Is given a sentence for everything worth one.
    """

    def __init__(self, measurers: Sequence[Measurer], tell: Callable[[str], None]) -> None:
        self._measurers, self._tell = list(measurers), tell
        self._stack = ExitStack()
        self._threads = ThreadPoolExecutor(len(self._measurers))
        self._is_alone = len(self._measurers) == 1
        # Those that nobody uses; None once there are none at all any more.
        self._free: queue.SimpleQueue[Measurer | None] = queue.SimpleQueue()
        for measurer in self._measurers:
            self._free.put(measurer)

    def __enter__(self) -> Pool:
        """Nothing is started before it is needed."""
        for measurer in self._measurers:
            self._stack.enter_context(measurer)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End all workers; what they do is not waited for."""
        self._stack.close()
        self._threads.shutdown(cancel_futures=True)

    @property
    def size(self) -> int:
        """How many devices there are."""
        return len(self._measurers)

    def take(self, kernel: Kernel, function: tirx.PrimFunc) -> float:
        """Go on with a kernel and its default schedule; return that one's time, in seconds.

        Raises
        ------
        FabricError
            If the default schedule itself does not run, or no device is left.
        """
        times = self._on_all(lambda measurer: measurer.take(kernel, function))
        return sorted(times)[len(times) // 2]

    def _on_all(self, work: Callable[[Measurer], float]) -> list[float]:
        """Have every device do something, and go on with those that could."""
        measurers = list(self._measurers)
        jobs = [self._threads.submit(work, measurer) for measurer in measurers]
        found = []
        for measurer, job in zip(measurers, jobs, strict=True):
            try:
                found.append(job.result())
            except DeviceLostError as error:
                self._leave_out(measurer, error)
        self._free = queue.SimpleQueue()
        for measurer in self._measurers:
            self._free.put(measurer)
        self._pass_on()
        return found

    def compare(
        self, function: tirx.PrimFunc, seconds: float, repeats: int = 1
    ) -> Measured | Failed:
        """Measure one candidate, on whichever device is left; see `Measurer.compare`."""
        return next(iter(self.compare_each([function], seconds, repeats)))

    def compare_each(
        self, functions: Sequence[tirx.PrimFunc], seconds: float, repeats: int = 1
    ) -> Iterator[Measured | Failed]:
        """Measure candidates, as many at once as there are devices; yields in their order.

        Raises
        ------
        FabricError
            If no device is left.
        """
        if self._is_alone:
            # In this thread: Ctrl-C ends what is being measured.
            for function in functions:
                yield self._measurers[0].compare(function, seconds, repeats)
                self._pass_on()
            return
        jobs = [self._threads.submit(self._by_any, f, seconds, repeats) for f in functions]
        for job in jobs:
            yield job.result()
            self._pass_on()

    def _by_any(self, function: tirx.PrimFunc, seconds: float, repeats: int) -> Measured | Failed:
        """Measure a candidate on the next device that is free, and on another if that is lost."""
        while (measurer := self._free.get()) is not None:
            try:
                found = measurer.compare(function, seconds, repeats)
            except DeviceLostError as error:
                if self.size == 1:
                    self._free.put(None)
                self._leave_out(measurer, error)
                continue
            self._free.put(measurer)
            return found
        self._free.put(None)
        raise DeviceLostError("No device is left.", "Start them again, and go on with --resume.")

    def _leave_out(self, measurer: Measurer, error: DeviceLostError) -> None:
        """Go on without a device; the last one's loss is everybody's."""
        if self.size == 1:
            raise error
        self._measurers.remove(measurer)
        others = "1 device" if self.size == 1 else f"{self.size} devices"
        self._tell(f"{error.cause} Going on with {others}.")

    def _pass_on(self) -> None:
        for measurer in self._measurers:
            notes, measurer.notes = measurer.notes, []
            for note in notes:
                self._tell(note)
