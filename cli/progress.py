"""Progress of one long piece of work: a bar on a terminal, one line per phase in a pipe."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from .output import Output

if TYPE_CHECKING:
    from rich.progress import Progress


class PhaseBar:
    """Shows what `bar(phase, fraction)` tells it; a context manager.

    The bar goes when the work is done: what it came to is the caller's to say.

    Parameters
    ----------
    output : Output
        Where to show it.
    """

    def __init__(self, output: Output) -> None:
        self._console = output.console
        self._phase = ""
        self._bar: Progress | None = None

    def __enter__(self) -> PhaseBar:
        """Begin to show progress."""
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                BarColumn(bar_width=32),
                TimeElapsedColumn(),
                TextColumn("{task.description}"),
                console=self._console,
                transient=True,
            )
            self._bar.add_task("", total=1.0)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, phase: str, fraction: float) -> None:
        """Say that the whole work has come to `fraction` (0 to 1) and what is done now."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=fraction, description=phase)
        elif phase != self._phase:
            self._console.print(f"  {phase}", markup=False)
        self._phase = phase
