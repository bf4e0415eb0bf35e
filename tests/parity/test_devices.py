"""A device gives the processor's numbers: losses, gradients, updates, logits, on real drivers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bitfabric.runtime import InferenceEngine, TrainingEngine

from ..devices import TARGET_PARAMETERS
from .conftest import BASE, CASES, Compiled, compile_tiny
from .test_training import labelled, setting


@pytest.fixture(scope="module", params=TARGET_PARAMETERS)
def target(request: pytest.FixtureRequest) -> str:
    """Every target in turn."""
    return request.param


@pytest.fixture(scope="module", params=list(CASES))
def both(
    request: pytest.FixtureRequest, target: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Compiled, Compiled]:
    """Every case in turn, compiled for the processor and for the device."""
    folder = tmp_path_factory.mktemp(request.param)
    case = CASES[request.param]
    return (
        compile_tiny(folder / "cpu", case, head="int8"),
        compile_tiny(folder / "device", case, target=target, head="int8"),
    )


def test_loss_gradients_and_update(both: tuple[Compiled, Compiled]) -> None:
    adapter, _, batch = setting(both[0])
    found = []
    for compiled in both:
        engine = TrainingEngine(compiled.bundle)
        engine.load_adapter_tensors(adapter)
        evaluated = engine.evaluate(batch)
        loss = engine.accumulate(batch, 1.0 / labelled(batch), seed=0)
        gradients = engine.gradient_tensors()
        norm = engine.update(learning_rate=1e-3, step=1, clip_norm=1.0)
        found.append((evaluated, loss, norm, gradients, engine.adapter_tensors()))
    here, there = found
    halves = "fp16" in both[1].bundle.manifest["target"]["features"]
    assert there[:2] == pytest.approx(here[:2], rel=1e-5)
    assert there[2] == pytest.approx(here[2], rel=1e-3 if halves else 1e-5)
    for name, gradient in here[3].items():
        error = np.linalg.norm(there[3][name] - gradient)
        assert error <= 1e-3 * np.linalg.norm(gradient), name
        # Halves of some factors of the adjoints move single elements more, and a first step is by
        # their signs; the forward pass has none.
        if not halves:
            atol = 1e-4 * np.abs(gradient).max()
            np.testing.assert_allclose(there[3][name], gradient, rtol=1e-3, atol=atol, err_msg=name)
            np.testing.assert_allclose(there[4][name], here[4][name], rtol=1e-3, atol=2e-5)


def test_logits_of_prompts_tokens_and_batches(both: tuple[Compiled, Compiled]) -> None:
    adapter, _, _ = setting(both[0])
    tokens = np.random.default_rng(5).integers(0, BASE.vocab_size, 33)
    found = []
    for compiled in both:
        engine = InferenceEngine(compiled.bundle, [(adapter, 1.0)], capacity=64)
        logits = [*engine.score(tokens), *(engine.decode(int(t)) for t in tokens[:9])]
        pair = InferenceEngine(compiled.bundle, capacity=32, batch=2)
        pair.prefill(tokens[:5], 0)
        pair.prefill(tokens[5:12], 1)
        found.append(np.stack([*logits, *pair.decode_batch([3, 4])]))
    here, there = (rows.astype(np.float64) for rows in found)
    # An activation that lies on the border of two 8-bit codes may fall to either side, and moves
    # the logits of its own token a little; all others agree to the last bits.
    assert kl(here, there).mean() < 1e-6
    assert (here.argmax(axis=1) == there.argmax(axis=1)).mean() >= 0.999


def kl(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the divergence of the distributions that rows of logits mean."""
    p, q = (rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)) for rows in (left, right))
    return (np.exp(p) * (p - q)).sum(axis=1)


def test_a_resumed_run_continues_bit_for_bit(target: str, tmp_path: Path) -> None:
    compiled = compile_tiny(tmp_path, CASES["grouped-query-relu2"], target=target, head="int8")
    adapter, _, batch = setting(compiled)

    def step(engine: TrainingEngine, number: int) -> float:
        loss = engine.accumulate(batch, 1.0 / labelled(batch), seed=number)
        engine.update(learning_rate=1e-2, step=number, clip_norm=1.0)
        return loss

    whole = TrainingEngine(compiled.bundle)
    whole.load_adapter_tensors(adapter)
    losses = [step(whole, number) for number in (1, 2, 3, 4)]
    first = TrainingEngine(compiled.bundle)
    first.load_adapter_tensors(adapter)
    halves = [step(first, number) for number in (1, 2)]
    second = TrainingEngine(compiled.bundle)
    second.load_state(first.state())
    halves += [step(second, number) for number in (3, 4)]
    assert halves == losses
    for name, values in whole.state().items():
        np.testing.assert_array_equal(second.state()[name], values)
