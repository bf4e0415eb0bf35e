"""What a training leaves behind about itself: metrics, TensorBoard events, the picture, words."""

from __future__ import annotations

from pathlib import Path

from .checkpoint import Progress
from .metrics import EvalMetrics, MetricsFile, StepMetrics, read_metrics
from .plot import plot_losses
from .progress import Reporter
from .tensorboard import EventFile

METRICS_FILE = "metrics.jsonl"
PICTURE_FILE = "loss.svg"


class Recorder:
    """Tells every step and validation to all who want to know.

    Parameters
    ----------
    folder : Path
        Where metrics.jsonl and loss.svg go.
    log_dir : str
        Folder for TensorBoard's events; "" for none.
    reporter : Reporter
        Who tells the person.
    """

    def __init__(self, folder: Path, log_dir: str, reporter: Reporter) -> None:
        self.folder = folder
        self.reporter = reporter
        self._log_dir = log_dir
        self._metrics = MetricsFile(folder / METRICS_FILE)
        self._events: EventFile | None = None

    def open(self, progress: Progress, total: int, *, resumed: bool) -> None:
        """Cut off what an interrupted run wrote after its checkpoint, and begin.

        Parameters
        ----------
        progress : Progress
            Where the training starts.
        total : int
            Steps of the whole training.
        resumed : bool
            Whether it goes on from a checkpoint.

        Raises
        ------
        FileError
            Where a file cannot be written.
        """
        self._metrics.open_after(progress.step, evaluated=progress.evaluated_step)
        if self._log_dir:
            self._events = EventFile(Path(self._log_dir), progress.step + 1 if resumed else 0)
        self.reporter.begin(progress.step, total)

    def step(self, metrics: StepMetrics) -> None:
        """Record an optimizer step."""
        self._metrics.write(metrics)
        if self._events is not None:
            scalars = {
                "train/loss": metrics.loss,
                "train/learning_rate": metrics.lr,
                "train/grad_norm": metrics.grad_norm,
                "train/tokens_per_s": metrics.tokens_per_s,
            }
            self._events.write(metrics.step, scalars)
        self.reporter.step(metrics)

    def evaluation(self, metrics: EvalMetrics) -> None:
        """Record a validation."""
        self._metrics.write(metrics)
        if self._events is not None:
            scalars = {
                "eval/loss": metrics.eval_loss,
                "eval/perplexity": metrics.eval_perplexity,
            }
            self._events.write(metrics.step, scalars)
        self.reporter.evaluation(metrics)

    def sync(self) -> None:
        """Make the metrics reach the disk, before a checkpoint that counts on them."""
        self._metrics.sync()

    def draw(self, title: str) -> None:
        """Draw the loss curve of all steps so far."""
        plot_losses(read_metrics(self.folder / METRICS_FILE), self.folder / PICTURE_FILE, title)

    def close(self) -> None:
        """Close the files and leave the progress bar as it stands."""
        self.reporter.end()
        self._metrics.close()
        if self._events is not None:
            self._events.close()
