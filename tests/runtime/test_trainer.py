"""A training learns, keeps its best adapter, stops when it should, and tells the truth about it."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitfabric.runtime.adapter import load_adapter
from bitfabric.runtime.batch import IGNORE, Batch
from bitfabric.runtime.checkpoint import find_checkpoint
from bitfabric.runtime.config import ConfigError, make_config
from bitfabric.runtime.data import DataError
from bitfabric.runtime.evaluate import evaluate_file
from bitfabric.runtime.files import FileError, only_writer
from bitfabric.runtime.progress import PlainReporter
from bitfabric.runtime.schedule import learning_rate_at
from bitfabric.runtime.tensorfile import read_metadata
from bitfabric.runtime.trainer import TrainingResult, train
from bitfabric.runtime.training_loop import DivergedError

from .conftest import write_jsonl
from .toy import ToyBundle, ToyTrainingEngine

KEYS = [
    "steps",
    "tokens",
    "tokens_per_s",
    "train_loss",
    "eval_loss_before",
    "eval_loss",
    "peak_memory_mib",
    "device_memory_mib",
    "adapter",
]


def run(
    bundle: ToyBundle, folder: Path, engine: Any = ToyTrainingEngine, **settings: Any
) -> TrainingResult:
    config = make_config({"adapter": folder, "learning_rate": 0.02, "batch": 5, **settings})
    return train(bundle, engine, config)


def lines(folder: Path, key: str = "loss") -> list[dict[str, Any]]:
    entries = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [entry for entry in entries if key in entry]


def adapter_of(folder: Path, bundle: ToyBundle) -> np.ndarray:
    return np.concatenate([t.ravel() for t in load_adapter(str(folder), bundle).tensors.values()])


def test_the_loss_falls_and_the_result_says_by_how_much(
    bundle: ToyBundle, tmp_path: Path, train_file: Path, eval_file: Path
) -> None:
    folder = tmp_path / "out"
    result = run(bundle, folder, train=train_file, eval_data=eval_file, epochs=10.0)
    assert list(result.to_json()) == KEYS
    assert json.loads(json.dumps(result.to_json()))["adapter"] == str(folder)
    steps = lines(folder)
    assert [entry["step"] for entry in steps] == list(range(1, 41))
    assert result.steps == 40
    assert result.train_loss == pytest.approx(np.mean([e["loss"] for e in steps[-10:]]))
    assert result.train_loss < 0.7 * steps[0]["loss"]
    assert result.eval_loss_before is not None
    assert result.eval_loss is not None
    assert result.eval_loss < 0.7 * result.eval_loss_before
    assert result.tokens == sum(entry["tokens"] for entry in steps)
    # 20 texts, each with a begin token, its bytes, and an end token that is only a label.
    texts = [json.loads(line)["text"] for line in train_file.read_text().splitlines()]
    assert result.tokens == 10 * sum(len(text) + 1 for text in texts)
    assert result.peak_memory_mib > 10


def test_every_step_follows_the_schedule_and_is_recorded_whole(
    bundle: ToyBundle, tmp_path: Path, train_file: Path
) -> None:
    run(bundle, tmp_path, train=train_file, epochs=2.0, warmup_ratio=0.25, scheduler="linear")
    for entry in lines(tmp_path):
        rate = learning_rate_at(entry["step"], total=8, peak=0.02, scheduler="linear", warmup=2)
        assert entry["lr"] == rate
        assert entry["epoch"] == entry["step"] / 4
        assert set(entry) == {
            *("step", "epoch", "loss", "lr", "grad_norm"),
            *("tokens", "tokens_per_s", "memory_mib", "time"),
        }


def test_the_reported_loss_is_what_evaluation_gives_for_the_adapter_on_disk(
    bundle: ToyBundle, tmp_path: Path, train_file: Path, eval_file: Path
) -> None:
    result = run(bundle, tmp_path, train=train_file, eval_data=eval_file, epochs=3.0)
    before = evaluate_file(bundle, ToyTrainingEngine, eval_file)
    after = evaluate_file(bundle, ToyTrainingEngine, eval_file, adapter=str(tmp_path))
    assert before.loss == result.eval_loss_before
    assert after.loss == result.eval_loss
    assert after.perplexity == pytest.approx(math.exp(after.loss))
    assert list(after.to_json()) == ["loss", "perplexity", "tokens"]
    texts = [json.loads(line)["text"] for line in eval_file.read_text().splitlines()]
    assert after.tokens == sum(len(text) + 1 for text in texts)


def test_micro_batches_and_accumulation_change_nothing(tmp_path: Path, train_file: Path) -> None:
    adapters = []
    for micro_batch, batch, accumulate in ((1, 6, 1), (4, 6, 1), (2, 2, 3)):
        bundle = ToyBundle(micro_batch=micro_batch)
        bundle.lora = {**bundle.lora, "dropout": 0.0}
        folder = tmp_path / f"{micro_batch}-{accumulate}"
        run(bundle, folder, train=train_file, batch=batch, accumulate=accumulate)
        adapters.append(adapter_of(folder, bundle))
    np.testing.assert_allclose(adapters[1], adapters[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(adapters[2], adapters[0], rtol=1e-3, atol=1e-5)


def test_packing_changes_the_rows_and_not_what_is_learned(
    bundle: ToyBundle, tmp_path: Path, train_file: Path
) -> None:
    bundle.lora = {**bundle.lora, "dropout": 0.0}
    every = {"train": train_file, "batch": 100, "max_steps": 6}
    run(bundle, tmp_path / "one", **every)
    run(bundle, tmp_path / "packed", pack=True, **every)
    np.testing.assert_allclose(
        adapter_of(tmp_path / "packed", bundle), adapter_of(tmp_path / "one", bundle), atol=1e-4
    )


def scripted(losses: list[float], saved: list[np.ndarray]) -> type[ToyTrainingEngine]:
    """An engine whose validations give these losses, and that notes its adapter at each."""

    class Scripted(ToyTrainingEngine):
        calls = 0

        def evaluate(self, batch: Batch) -> float:
            saved.append(np.concatenate([t.ravel() for t in self.adapter_tensors().values()]))
            Scripted.calls += 1
            return losses[Scripted.calls - 1] * int((batch.labels != IGNORE).sum())

    return Scripted


def test_the_best_adapter_is_kept_and_patience_ends(
    bundle: ToyBundle, tmp_path: Path, train_file: Path
) -> None:
    eval_file = write_jsonl(tmp_path / "one.jsonl", [{"text": "seven"}])
    saved: list[np.ndarray] = []
    engine = scripted([4.0, 3.0, 2.0, 2.5, 2.1, 9.0], saved)
    folder = tmp_path / "out"
    settings = {"train": train_file, "eval_data": eval_file, "eval_every": 2, "early_stop": 2}
    result = run(bundle, folder, engine, **settings, max_steps=20)
    assert (result.steps, result.best_step, result.stopped_early) == (8, 4, True)
    assert (result.eval_loss_before, result.eval_loss) == pytest.approx((4.0, 2.0))
    np.testing.assert_array_equal(adapter_of(folder, bundle), saved[2])
    steps = [entry["step"] for entry in lines(folder, "eval_loss")]
    assert steps == [0, 2, 4, 6, 8]


def test_validation_is_once_an_epoch_and_at_the_end(
    bundle: ToyBundle, tmp_path: Path, train_file: Path, eval_file: Path
) -> None:
    run(bundle, tmp_path, train=train_file, eval_data=eval_file, max_steps=10)
    assert [entry["step"] for entry in lines(tmp_path, "eval_loss")] == [0, 4, 8, 10]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_divergence_stops_with_the_step_and_leaves_the_checkpoint(
    bundle: ToyBundle, tmp_path: Path, train_file: Path, where: str
) -> None:
    class Diverges(ToyTrainingEngine):
        def update(self, *, step: int, **settings: Any) -> float:  # type: ignore[override]
            norm = super().update(step=step, **settings)
            if step == 7 and where == "loss":
                self._state["adapter"][:] = np.nan
            return float("inf") if step == 8 and where == "gradient" else norm

    with pytest.raises(DivergedError, match=f"At step 8 the {where}") as caught:
        run(bundle, tmp_path, Diverges, train=train_file, save_every=5, epochs=9.0)
    assert "Lower --learning-rate" in caught.value.remedy
    checkpoint = find_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.progress.step == 5
    assert np.isfinite(adapter_of(tmp_path, bundle)).all()
    assert run(bundle, tmp_path, train=train_file, epochs=9.0).steps == 36


def test_faults_of_data_and_settings_come_before_the_engine(
    bundle: ToyBundle, tmp_path: Path, train_file: Path
) -> None:
    def never(bundle: ToyBundle) -> Any:
        raise AssertionError("the engine was opened")

    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="no record"):
        run(bundle, tmp_path / "out", never, train=tmp_path / "empty.jsonl")
    with pytest.raises(ConfigError, match="A context of 4096"):
        run(bundle, tmp_path / "out", never, train=train_file, context=4096)
    with only_writer(tmp_path / "out"), pytest.raises(FileError, match="Another training"):
        run(bundle, tmp_path / "out", never, train=train_file)


def test_a_new_run_sets_an_old_checkpoint_aside(
    bundle: ToyBundle, tmp_path: Path, train_file: Path
) -> None:
    run(bundle, tmp_path / "out", train=train_file, seed=1)
    old = (tmp_path / "out" / "checkpoint.safetensors").read_bytes()
    run(bundle, tmp_path / "out", train=train_file, seed=2, max_steps=2)
    assert (tmp_path / "out" / "checkpoint.previous.safetensors").read_bytes() == old
    assert len(lines(tmp_path / "out")) == 2


def test_what_a_person_reads(
    bundle: ToyBundle, tmp_path: Path, train_file: Path, eval_file: Path
) -> None:
    said = io.StringIO()
    settings = {"train": train_file, "eval_data": eval_file, "adapter": tmp_path / "out"}
    train(bundle, ToyTrainingEngine, make_config(settings), reporter=PlainReporter(said))
    text = said.getvalue()
    assert "train.jsonl: 20 documents" in text
    assert "validation before training: loss" in text
    assert "step 1/15  epoch 0.20  loss" in text
    assert "step 15/15" in text
    assert "validation after step 15: loss" in text
    svg = (tmp_path / "out" / "loss.svg").read_text()
    assert "toy on train.jsonl" in svg


def test_provenance_names_model_data_and_losses_but_no_place_or_time(
    bundle: ToyBundle, tmp_path: Path, train_file: Path, eval_file: Path
) -> None:
    settings = {"train": train_file, "eval_data": eval_file, "log_dir": tmp_path / "logs"}
    result = run(bundle, tmp_path / "out", **settings)
    metadata = read_metadata(tmp_path / "out" / "adapter_model.safetensors")
    assert metadata["format"] == "pt"
    found = json.loads(metadata["bitfabric"])
    assert found["model"] == "toy"
    assert found["target"] == "cpu"
    assert found["data"]["train"]["file"] == "train.jsonl"
    assert len(found["data"]["eval_data"]["sha256"]) == 64
    assert found["eval_loss"] == result.eval_loss
    assert found["step"] == result.best_step
    assert str(tmp_path) not in metadata["bitfabric"]
    again = dataclasses.replace(bundle)
    run(again, tmp_path / "elsewhere", **{**settings, "save_every": 3, "log_dir": ""})
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        one, two = (tmp_path / folder / name for folder in ("out", "elsewhere"))
        assert one.read_bytes() == two.read_bytes()
