"""A device gives the processor's numbers: the bundles that were brought are compared.

An activation that lies on the border of two 8-bit codes falls to either side with the last bit of a
float32, so two instruction sets of one processor differ as well. What they differ by is the measure
for the device where it is above float32's own error.

Needs the runtime alone. ``FABRIC_HARDWARE_BUNDLES`` names the folder that `make_bundles.py` wrote.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bitfabric.runtime import Batch, Bundle, InferenceEngine, TrainingEngine, open_bundle

FOLDER = os.environ.get("FABRIC_HARDWARE_BUNDLES", "")
NAMES = sorted(path.stem for path in Path(FOLDER).glob("*-on-*.fabric"))
"""Such as ``nano-on-vulkan-nvidia``: a case, and the device's target."""

pytestmark = pytest.mark.skipif(
    not (FOLDER and NAMES), reason="FABRIC_HARDWARE_BUNDLES names no folder of bundles to compare"
)


@pytest.fixture(params=NAMES)
def both(request: pytest.FixtureRequest) -> tuple[Bundle, Bundle]:
    """Return one case, compiled for the processor and for the device."""
    case = request.param.partition("-on-")[0]
    cpu, device = (
        open_bundle(Path(FOLDER) / f"{n}.fabric") for n in (f"{case}-cpu", request.param)
    )
    return cpu, device


def batch_of(bundle: Bundle) -> Batch:
    """Return random rows of two documents, a fifth of the tokens without a label."""
    generator = np.random.default_rng(3)
    shape = (bundle.micro_batch, bundle.context)
    tokens = generator.integers(0, bundle.config["vocab_size"], (2, *shape), np.int32)
    labels = np.where(generator.random(shape) < 0.2, -100, tokens[1]).astype(np.int32)
    starts = np.zeros(shape, np.int32)
    starts[:, bundle.context // 3 :] = bundle.context // 3
    return Batch(tokens[0], labels, starts)


def adapter_of(engine: TrainingEngine) -> dict[str, np.ndarray]:
    """Return random factors of the adapter's shapes, neither of them zero."""
    generator = np.random.default_rng(4)
    return {
        name: (0.05 * generator.standard_normal(values.shape)).astype(np.float32)
        for name, values in engine.adapter_tensors().items()
    }


def test_training(both: tuple[Bundle, Bundle], request: pytest.FixtureRequest) -> None:
    other = open_bundle(other_path(request))
    here, there, elsewhere = (trained(bundle) for bundle in (*both, other))
    # Loss and norm of the gradient, then every gradient: float32's error, or what two kinds of
    # processor differ by where an activation fell to the other side.
    for floor, this, that, reference in zip((1e-5, 1e-3), there, elsewhere, here, strict=True):
        assert relative_error(this, reference) < max(floor, 3.0 * relative_error(that, reference))


def other_path(request: pytest.FixtureRequest) -> Path:
    """Return the bundle of the same case for another kind of processor."""
    case = request.node.callspec.params["both"].partition("-on-")[0]
    return Path(FOLDER) / f"{case}-other.fabric"


def trained(bundle: Bundle) -> tuple[np.ndarray, np.ndarray]:
    """Return the losses and the gradient's norm of a first step, and the gradients in a row."""
    batch, engine = batch_of(bundle), TrainingEngine(bundle)
    engine.load_adapter_tensors(adapter_of(engine))
    count = 1.0 / int((batch.labels >= 0).sum())
    losses = [engine.evaluate(batch), engine.accumulate(batch, count, 1)]
    gradients = np.concatenate([g.ravel() for g in engine.gradient_tensors().values()])
    losses.append(engine.update(learning_rate=1e-4, step=1, clip_norm=1.0))
    return np.array(losses), gradients.astype(np.float64)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the length of the difference over that of what is expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_logits(both: tuple[Bundle, Bundle], request: pytest.FixtureRequest) -> None:
    other = open_bundle(other_path(request))
    here, there, elsewhere = (log_probabilities(b) for b in (*both, other))
    # Rows in which no code fell to the other side agree to float32; a few may not be so.
    for middle, floor in ((np.median, 1e-6), (np.mean, 1e-5)):
        bound = max(floor, 3.0 * divergence(here, elsewhere, middle))
        assert divergence(here, there, middle) < bound
    assert agreement(here, there) >= min(0.999, agreement(here, elsewhere) - 0.01)


def log_probabilities(bundle: Bundle) -> np.ndarray:
    """Return what a prompt, tokens one by one, and batched tokens give, float64."""
    engine = InferenceEngine(bundle, capacity=400)
    tokens = np.random.default_rng(5).integers(0, bundle.config["vocab_size"], 300)
    rows = [*engine.score(tokens), *(engine.decode(int(t)).copy() for t in tokens[:40])]
    pair = InferenceEngine(bundle, capacity=64, batch=2)
    pair.prefill(tokens[:5], 0)
    pair.prefill(tokens[5:25], 1)
    rows += [row.copy() for _ in range(3) for row in pair.decode_batch([3, 4])]
    logits = np.stack(rows).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def divergence(p: np.ndarray, q: np.ndarray, middle: Callable[..., float]) -> float:
    """Return the median or mean Kullback-Leibler divergence of the rows of q from those of p."""
    return float(middle((np.exp(p) * (p - q)).sum(axis=1)))


def agreement(p: np.ndarray, q: np.ndarray) -> float:
    """Return the share of rows with the same most likely token."""
    return float((p.argmax(axis=1) == q.argmax(axis=1)).mean())


def test_the_same_run_twice_is_the_same_bit_for_bit(both: tuple[Bundle, Bundle]) -> None:
    batch, states = batch_of(both[1]), []
    for _ in range(2):
        engine = TrainingEngine(both[1])
        engine.initialize_adapter(7)
        for step in range(1, 6):
            engine.accumulate(batch, 1e-2, step)
            engine.update(learning_rate=1e-3, step=step, clip_norm=1.0)
        states.append(engine.state())
    for name, values in states[0].items():
        np.testing.assert_array_equal(states[1][name], values)
