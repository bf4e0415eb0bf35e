"""Every target that this processor can run gives the same numbers, training and inference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bitfabric.runtime import InferenceEngine, TrainingEngine
from bitfabric.targets import get_target, host_cpu, list_targets

from ..reference.torch_bitnet import random_adapter
from .conftest import BASE, compile_tiny
from .test_training import labelled, setting

RUNNABLE = [
    target.name
    for target in list_targets()
    if target.family == "cpu"
    and target.options["mtriple"] == host_cpu().options["mtriple"]
    and target.features <= host_cpu().features
    and target != host_cpu()
]


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.slow
def test_numbers_of_a_smaller_target_are_the_hosts(name: str, tmp_path: Path) -> None:
    here = compile_tiny(tmp_path / "here", {})
    there = compile_tiny(tmp_path / "there", {}, target=name)
    assert there.bundle.manifest["target"]["name"] == get_target(name).name
    adapter, _, batch = setting(here)
    found = []
    for each in (here, there):
        engine = TrainingEngine(each.bundle)
        engine.load_adapter_tensors(adapter)
        loss = engine.accumulate(batch, 1.0 / labelled(batch), seed=0)
        engine.update(learning_rate=1e-3, step=1)
        inference = InferenceEngine(
            each.bundle, [(random_adapter(BASE, rank=4, seed=1), 1.0)], capacity=32
        )
        logits = [inference.prefill(batch.tokens[0, :9]), inference.decode(3)]
        found.append((loss, engine.state()["adapter"].copy(), logits))
    (loss, state, logits), (other_loss, other_state, other_logits) = found
    assert other_loss == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(other_state, state, rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(other_logits, logits, rtol=1e-4, atol=1e-4)
