"""A streamed training loses its disk, keeps its checkpoint, and goes on to the same adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bitfabric.compiler import CompileOptions, compile_model
from bitfabric.models import open_model
from bitfabric.runtime import Bundle, open_bundle, training_engine
from bitfabric.runtime.checkpoint import find_checkpoint
from bitfabric.runtime.config import make_config
from bitfabric.runtime.streaming import StreamingTrainingEngine
from bitfabric.runtime.trainer import train
from bitfabric.targets import FabricError, get_target

from .conftest import write_jsonl

LAYER, STEPS, FAULT = 5, 5, 3


def settings(folder: Path, data: Path) -> Any:
    return make_config(
        {
            "train": str(data),
            "adapter": str(folder),
            "batch": 1,
            "max_steps": STEPS,
            "epochs": 9.0,
            "save_every": 1,
            "clip_norm": 0.5,
        }
    )


@pytest.mark.parametrize("gradients", ["all", "layer"])
def test_a_lost_disk_leaves_the_checkpoint_from_which_the_same_adapter_comes(
    tmp_path: Path, gradients: str
) -> None:
    texts = ["The cell divides.", "A gene is read.", "Proteins fold in water."]
    data = write_jsonl(tmp_path / "train.jsonl", [{"text": text} for text in texts])
    options = CompileOptions(context=64, resident_layers=2, gradients=gradients)
    path = compile_model(open_model("nano"), get_target("cpu"), options, tmp_path / "nano")
    whole = train(open_bundle(path), training_engine, settings(tmp_path / "whole", data))

    file, _ = (bundle := open_bundle(path)).weight_file(1 + LAYER)
    content = file.read_bytes()

    def failing(bundle: Bundle) -> StreamingTrainingEngine:
        engine = training_engine(bundle)
        assert isinstance(engine, StreamingTrainingEngine)
        update = engine.update

        def then_fail(*, step: int, **named: Any) -> float:
            norm = update(step=step, **named)
            if step == FAULT:
                file.write_bytes(content[: len(content) // 3])
            return norm

        engine.update = then_fail  # type: ignore[method-assign]
        return engine

    config = settings(tmp_path / "broken", data)
    with pytest.raises(FabricError, match=rf"layer_00{LAYER}\.bin"):
        train(bundle, failing, config)
    checkpoint = find_checkpoint(tmp_path / "broken")
    assert checkpoint is not None
    assert checkpoint.progress.step == FAULT
    file.write_bytes(content)
    resumed = train(open_bundle(path), training_engine, config, resume=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (resumed.adapter / name).read_bytes() == (whole.adapter / name).read_bytes()
