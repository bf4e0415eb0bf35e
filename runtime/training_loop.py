"""The training loop: steps, validations and checkpoints, each due by the progress alone."""

from __future__ import annotations

import math
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..targets import FabricError
from .adapter import load_adapter, model_name, save_adapter, target_name
from .checkpoint import Checkpoint, Progress, load_state, save_checkpoint
from .config import TrainingConfig
from .data import dropout_seed
from .evaluate import Evaluation, evaluate
from .interrupt import StopRequest, TrainingInterrupted
from .memory import current_memory_mib
from .metrics import EvalMetrics, StepMetrics, Transfer
from .protocols import BundleLike, Streams, Trains
from .recorder import Recorder
from .schedule import learning_rate_at, warmup_steps
from .training_data import TrainingData

_RECENT = 10


class DivergedError(FabricError):
    """The loss or the gradients are no longer numbers."""

    def __init__(self, step: int, what: str, learning_rate: float) -> None:
        super().__init__(
            f"At step {step} the {what} is no longer a finite number: the training has diverged.",
            f"Lower --learning-rate (it was {learning_rate:g} there) or --clip-norm, or raise "
            "--warmup-ratio; the last checkpoint is intact.",
        )


class _StopNow(Exception):
    """Leaves the work in hand; what it had not finished is done again on resume."""


class TrainingLoop:
    """One run of the loop.

    Parameters
    ----------
    bundle : BundleLike
    engine : Trains
    config : TrainingConfig
    data : TrainingData
    identity : dict
        What fixes the loss curve; saved with every checkpoint.
    recorder : Recorder
    """

    def __init__(
        self,
        bundle: BundleLike,
        engine: Trains,
        config: TrainingConfig,
        data: TrainingData,
        identity: dict[str, Any],
        recorder: Recorder,
    ) -> None:
        self.bundle = bundle
        self.engine = engine
        self.config = config
        self.data = data
        self.identity = identity
        self.recorder = recorder
        self.folder = Path(config.adapter)
        self.progress = Progress()
        self.total = config.total_steps(data.order.steps_per_epoch)
        self.warmup = warmup_steps(config.warmup_ratio, self.total)
        self.eval_every = config.eval_every or data.order.steps_per_epoch
        self.saved_step = -1
        self.stop = StopRequest()

    def run(self, checkpoint: Checkpoint | None) -> Progress:
        """Train to the end, to an early stop, or until the person stops it.

        Parameters
        ----------
        checkpoint : Checkpoint or None
            Where to go on from; None to start anew.

        Returns
        -------
        Progress
            The state at the end, which is saved.

        Raises
        ------
        TrainingInterrupted
            After SIGINT or SIGTERM, with everything saved.
        DivergedError, FileError
            With the last checkpoint intact.
        """
        with self.stop:
            self._restore(checkpoint)
            self.recorder.open(self.progress, self.total, resumed=checkpoint is not None)
            try:
                self._loop()
                self._save()
            except _StopNow:
                self._save()
                raise TrainingInterrupted(self.progress.step, str(self.folder)) from None
            finally:
                self.recorder.close()
        return self.progress

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        """Start anew, from another adapter, or from a checkpoint."""
        self.engine.initialize_adapter(self.config.seed)
        if checkpoint is not None:
            self.engine.load_state(load_state(self.folder))
            self.progress = checkpoint.progress
            self.saved_step = self.progress.step
        elif self.config.init_adapter:
            start = load_adapter(self.config.init_adapter, self.bundle)
            fresh = self.engine.adapter_tensors()
            self.engine.load_adapter_tensors(start.trainable(self.bundle, fresh))

    def _loop(self) -> None:
        """Validate, save and step in turn; each is due or not by the progress alone."""
        while True:
            if self._validation_due():
                self._validate()
            if self._finished():
                return
            every = self.config.save_every
            if every and self.progress.step % every == 0 and self.progress.step:
                self._save()
            self._check_stop()
            self._step()

    @property
    def stopped_early(self) -> bool:
        """Whether the validation loss has not improved for as long as is waited."""
        patience = self.config.early_stop
        return bool(patience) and self.progress.bad_evaluations >= patience

    def _finished(self) -> bool:
        return self.progress.step >= self.total or self.stopped_early

    def _validation_due(self) -> bool:
        """Whether to validate now: before, every so many steps, and at the end."""
        step = self.progress.step
        if self.data.evaluation is None or self.progress.evaluated_step == step:
            return False
        return step % self.eval_every == 0 or step >= self.total

    def _check_stop(self) -> None:
        if self.stop.asked:
            raise _StopNow

    def _step(self) -> None:
        """Take one optimizer step."""
        began = time.perf_counter()
        step = self.progress.step + 1
        config, data = self.config, self.data
        rows = data.order.rows_of(step)
        tokens, labelled = data.train.count(rows)
        rate = learning_rate_at(
            step,
            total=self.total,
            peak=config.learning_rate,
            scheduler=config.scheduler,
            warmup=self.warmup,
        )
        total_loss, transferred = 0.0, self._transferred()
        for index, batch in enumerate(data.train.micro_batches(rows)):
            seed = dropout_seed(config.seed, step, index)
            total_loss += self.engine.accumulate(batch, 1.0 / labelled, seed)
            self._check_stop()
        if not math.isfinite(total_loss):
            raise DivergedError(step, "loss", rate)
        norm = self.engine.update(
            learning_rate=rate,
            step=step,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
        )
        if not math.isfinite(norm):
            raise DivergedError(step, "gradients' norm", rate)
        seconds = time.perf_counter() - began
        transfer = None
        if transferred is not None and (now := self._transferred()) is not None:
            transfer = Transfer.of(now[0] - transferred[0], now[1] - transferred[1], seconds)
        self._record_step(step, total_loss / labelled, rate, norm, tokens, seconds, transfer)

    def _transferred(self) -> tuple[float, float] | None:
        """Return the seconds of reading layers and of waiting for them; None without streaming."""
        return self.engine.transfer_seconds() if isinstance(self.engine, Streams) else None

    def _record_step(
        self,
        step: int,
        loss: float,
        rate: float,
        norm: float,
        tokens: int,
        seconds: float,
        transfer: Transfer | None,
    ) -> None:
        """Count the step and tell everyone about it."""
        progress = self.progress
        progress.step = step
        progress.tokens += tokens
        progress.train_seconds += seconds
        progress.recent_losses = [*progress.recent_losses, loss][-_RECENT:]
        metrics = StepMetrics(
            step=step,
            epoch=self.data.order.epoch_of(step),
            loss=loss,
            lr=rate,
            grad_norm=norm,
            tokens=tokens,
            tokens_per_s=tokens / seconds,
            memory_mib=round(current_memory_mib(), 1),
            time=progress.train_seconds,
            transfer=transfer,
        )
        self.recorder.step(metrics)

    def _validate(self) -> None:
        """Measure the validation loss; keep the adapter where it is the best so far."""
        assert self.data.evaluation is not None

        def told(done: int, total: int) -> None:
            self.recorder.reporter.validating(done, total)
            self._check_stop()

        found = evaluate(self.engine, self.data.evaluation, told)
        progress = self.progress
        if not math.isfinite(found.loss):
            raise DivergedError(progress.step, "validation loss", self.config.learning_rate)
        progress.evaluated_step = progress.step
        progress.eval_loss = found.loss
        self.saved_step = -1
        self._record_evaluation(found)
        if progress.step == 0:
            progress.eval_loss_before = found.loss
        elif progress.best_loss is None or found.loss < progress.best_loss:
            progress.best_loss, progress.best_step = found.loss, progress.step
            progress.bad_evaluations = 0
            self._save_adapter()
            self._save()
        else:
            progress.bad_evaluations += 1

    def _record_evaluation(self, found: Evaluation) -> None:
        step = self.progress.step
        metrics = EvalMetrics(
            step=step,
            epoch=self.data.order.epoch_of(step),
            eval_loss=found.loss,
            eval_perplexity=found.perplexity,
            time=self.progress.train_seconds,
        )
        self.recorder.evaluation(metrics)

    def _save(self) -> None:
        """Write the checkpoint; and the adapter too, where no validation has chosen one yet."""
        progress = self.progress
        if self.saved_step == progress.step:
            return
        if progress.best_loss is None and progress.step:
            self._save_adapter()
        self.recorder.sync()
        checkpoint = Checkpoint(progress, self.config.to_dict(), self.identity)
        save_checkpoint(self.folder, self.engine.state(), checkpoint)
        self.saved_step = progress.step

    def _save_adapter(self) -> None:
        """Write the adapter as it is now, with where it comes from."""
        progress = self.progress
        provenance = {
            "tool": f"bitfabric {_tool_version()}",
            "model": model_name(self.bundle),
            "target": target_name(self.bundle),
            "data": self.data.files,
            "init_adapter": Path(self.config.init_adapter).name,
            "step": progress.step,
            "tokens": progress.tokens,
            "train_loss": progress.recent_losses[-1],
            "eval_loss_before": progress.eval_loss_before,
            "eval_loss": progress.best_loss,
            "settings": {
                name: value for name, value in self.identity.items() if name.startswith("--")
            },
        }
        save_adapter(self.folder, self.engine.adapter_tensors(), self.bundle, provenance)


def _tool_version() -> str:
    try:
        return version("bitfabric")
    except PackageNotFoundError:
        return "unknown"
