"""A training that starts from another adapter: where it starts, and what it remembers of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitfabric.runtime.adapter import AdapterError, adapter_shapes, load_adapter, save_adapter
from bitfabric.runtime.checkpoint import ResumeError
from bitfabric.runtime.config import TrainingConfig
from bitfabric.runtime.gguf_adapter import write_gguf_adapter
from bitfabric.runtime.gguf_base import base_of_config
from bitfabric.runtime.peft_adapter import read_peft
from bitfabric.runtime.trainer import train

from .toy import ToyBundle, ToyTrainingEngine


def earlier(folder: Path, bundle: ToyBundle, rank: int = 4, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    tensors = {
        name: 0.1 * generator.standard_normal(shape).astype(np.float32)
        for name, shape in adapter_shapes(bundle, rank).items()
    }
    lora = {**bundle.lora, "rank": rank, "alpha": 2.0 * rank}
    save_adapter(folder, tensors, dataclasses.replace(bundle, lora=lora), {})
    return folder


def run(bundle: ToyBundle, train_file: Path, folder: Path, **changes: Any) -> Any:
    resume = changes.pop("resume", False)
    config = TrainingConfig(
        train=str(train_file), adapter=str(folder), batch=4, max_steps=4, **changes
    )
    return train(bundle, ToyTrainingEngine, config, resume=resume)


def test_it_starts_where_the_other_ended(
    bundle: ToyBundle, train_file: Path, tmp_path: Path
) -> None:
    start = earlier(tmp_path / "start", bundle)
    first = load_adapter(str(start), bundle).tensors
    run(bundle, train_file, tmp_path / "out", init_adapter=str(start), learning_rate=1e-9)
    after = load_adapter(str(tmp_path / "out"), bundle).tensors
    for name, tensor in first.items():
        np.testing.assert_allclose(after[name], tensor, atol=1e-7)
    assert '"init_adapter": "start"' in read_peft(tmp_path / "out").provenance


def test_gguf_and_peft_give_the_same_training(
    bundle: ToyBundle, train_file: Path, tmp_path: Path
) -> None:
    start = earlier(tmp_path / "start", bundle)
    file = tmp_path / "start.gguf"
    write_gguf_adapter(file, read_peft(start), base_of_config(bundle.config))
    for name, adapter in (("one", start), ("two", file)):
        run(bundle, train_file, tmp_path / name, init_adapter=str(adapter))
    one, two = (load_adapter(str(tmp_path / name), bundle).tensors for name in ("one", "two"))
    for name, tensor in one.items():
        np.testing.assert_array_equal(two[name], tensor)


def test_a_smaller_rank_leaves_no_direction_dead(
    bundle: ToyBundle, train_file: Path, tmp_path: Path
) -> None:
    start = earlier(tmp_path / "start", bundle, rank=2)
    small = load_adapter(str(start), bundle)
    engine = ToyTrainingEngine(bundle)
    engine.initialize_adapter(0)
    begun = small.trainable(bundle, engine.adapter_tensors())
    name = "model.layers.0.self_attn.q_proj"
    a, b = begun[f"{name}.lora_A"], begun[f"{name}.lora_B"]
    assert a.any(axis=1).all()
    assert not b[:, 2:].any()
    change = small.tensors[f"{name}.lora_B"] @ small.tensors[f"{name}.lora_A"] * small.scale
    np.testing.assert_allclose(b @ a * bundle.lora["scale"], change, rtol=1e-5, atol=1e-6)
    run(bundle, train_file, tmp_path / "out", init_adapter=str(start))
    trained = load_adapter(str(tmp_path / "out"), bundle).tensors[f"{name}.lora_B"]
    assert trained.any(axis=0).all()


def test_the_start_is_part_of_what_a_resume_must_share(
    bundle: ToyBundle, train_file: Path, tmp_path: Path
) -> None:
    start, other = earlier(tmp_path / "a", bundle), earlier(tmp_path / "b", bundle, seed=1)
    out = tmp_path / "out"
    run(bundle, train_file, out, init_adapter=str(start))
    with pytest.raises(ResumeError, match="another --init-adapter"):
        run(bundle, train_file, out, init_adapter=str(other), resume=True)
    with pytest.raises(ResumeError, match="another --init-adapter"):
        run(bundle, train_file, out, resume=True)
    run(bundle, train_file, out, init_adapter=str(start.resolve()), resume=True)


def test_a_resume_does_not_need_the_start_any_more(
    bundle: ToyBundle, train_file: Path, tmp_path: Path
) -> None:
    start = earlier(tmp_path / "start", bundle).resolve()
    run(bundle, train_file, tmp_path / "out", init_adapter=str(start))
    for file in start.iterdir():
        file.unlink()
    run(bundle, train_file, tmp_path / "out", init_adapter=str(start), resume=True)


def test_what_cannot_be_a_start_is_refused_before_anything_is_written(
    bundle: ToyBundle, train_file: Path, tmp_path: Path
) -> None:
    start = earlier(tmp_path / "start", bundle)
    before = {file.name: file.read_bytes() for file in start.iterdir()}
    with pytest.raises(AdapterError, match="write over"):
        run(bundle, train_file, start, init_adapter=f"{start}/:0.5")
    assert {file.name: file.read_bytes() for file in start.iterdir()} == before
    large = earlier(tmp_path / "large", bundle, rank=8)
    with pytest.raises(AdapterError, match="rank 8, and the bundle was compiled for 4"):
        run(bundle, train_file, tmp_path / "out", init_adapter=str(large))
