"""Dense families against transformers and PEFT: losses, every LoRA gradient, logits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model
from bitfabric.models import open_model
from bitfabric.runtime import Batch, Bundle, InferenceEngine, TrainingEngine, open_bundle
from bitfabric.runtime.backends import devices
from bitfabric.runtime.streaming import StreamingTrainingEngine
from bitfabric.targets import FabricError, automatic, get_target

from ..devices import TARGET_PARAMETERS
from .dense_models import OWN, VOCABULARY, WINDOW, loss_and_gradients, make

CONTEXT, RANK, ALPHA = 12, 4, 8.0


@dataclass(frozen=True)
class Case:
    """A family's tiny model in transformers, its adapter, and its folder."""

    family: str
    model: Any
    adapter: dict[str, np.ndarray]
    folder: Path

    def compile(self, target: str = "cpu", head: str = "f16", recompute: str = "auto") -> Bundle:
        """Compile the model for a target."""
        path = self.folder.parent / f"{self.family}-{target}-{head}-{recompute}.fabric"
        api = automatic(target)
        chosen = get_target(target, devices(api.kind)[0] if api else None)
        lora = LoraOptions(rank=RANK, alpha=ALPHA)
        options = CompileOptions(context=CONTEXT, lora=lora, head=head, recompute=recompute)
        if not path.exists():
            compile_model(open_model(str(self.folder)), chosen, options, path)
        return open_bundle(path)


@pytest.fixture(scope="module", params=list(OWN))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Every family in turn."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    model, adapter = make(request.param, folder, RANK, ALPHA)
    return Case(request.param, model, adapter, folder)


def _batch() -> Batch:
    generator = np.random.default_rng(5)
    tokens, labels = generator.integers(0, VOCABULARY, (2, 1, CONTEXT), np.int32)
    labels[:, :2] = -100
    return Batch(tokens, labels, np.zeros((1, CONTEXT), np.int32))


def test_loss_and_every_lora_gradient_equal_pefts(case: Case) -> None:
    batch = _batch()
    expected, wanted = loss_and_gradients(case.model, batch.tokens, batch.labels)
    engine = TrainingEngine(case.compile())
    engine.load_adapter_tensors(case.adapter)
    assert engine.accumulate(batch, 1.0, seed=0) == pytest.approx(expected, rel=1e-5)
    gradients = engine.gradient_tensors()
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        size = np.abs(wanted[name]).max()
        assert size > 0, name
        np.testing.assert_allclose(gradient, wanted[name], rtol=1e-4, atol=1e-4 * size)


@pytest.mark.slow
def test_two_documents_in_a_row_do_not_see_each_other(case: Case) -> None:
    batch, cut = _batch(), 5
    engine = TrainingEngine(case.compile())
    engine.load_adapter_tensors(case.adapter)
    starts = np.array([[0] * cut + [cut] * (CONTEXT - cut)], np.int32)
    found = engine.evaluate(Batch(batch.tokens, batch.labels, starts))
    wanted = 0.0
    for part in (slice(0, cut), slice(cut, CONTEXT)):
        with torch.no_grad():
            wanted += loss_only(case.model, batch.tokens[:, part], batch.labels[:, part])
    assert found == pytest.approx(wanted, rel=1e-5)


def loss_only(model: Any, tokens: np.ndarray, labels: np.ndarray) -> float:
    """Return the summed loss of the labelled tokens."""
    logits = model(torch.from_numpy(tokens).long()).logits.flatten(0, 1)
    targets = torch.from_numpy(labels).long().flatten()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()


@pytest.mark.slow
def test_streamed_layers_train_alike(case: Case) -> None:
    bundle, batch, found = case.compile(recompute="all"), _batch(), []
    for engine in (TrainingEngine(bundle), StreamingTrainingEngine(bundle, 0)):
        engine.load_adapter_tensors(case.adapter)
        loss = engine.accumulate(batch, 1.0, seed=0)
        found.append((loss, engine.gradient_tensors()))
    assert found[0][0] == found[1][0]
    for name, gradient in found[0][1].items():
        np.testing.assert_array_equal(gradient, found[1][1][name])


def test_prefill_and_decode_equal_transformers(case: Case) -> None:
    tokens = _batch().tokens[0][:WINDOW]
    with case.model.disable_adapter(), torch.no_grad():
        logits = case.model(torch.from_numpy(tokens[None]).long()).logits[0].numpy()
    engine = InferenceEngine(case.compile(), capacity=CONTEXT)
    np.testing.assert_allclose(engine.prefill(tokens[:4]), logits[3], rtol=1e-4, atol=1e-4)
    for i in range(4, WINDOW):
        np.testing.assert_allclose(engine.decode(tokens[i]), logits[i], rtol=1e-4, atol=1e-4)
    if case.family == "gemma3":
        with pytest.raises(FabricError, match=f"attend to the last {WINDOW}"):
            engine.decode(1)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGET_PARAMETERS)
def test_a_device_gives_the_processors_numbers(case: Case, target: str) -> None:
    batch, found = _batch(), []
    for kind in ("cpu", target):
        engine = TrainingEngine(case.compile(kind, "int8"))
        engine.load_adapter_tensors(case.adapter)
        loss = engine.accumulate(batch, 1.0, seed=0)
        found.append((loss, engine.gradient_tensors()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    for name, gradient in found[0][1].items():
        error = np.linalg.norm(found[1][1][name] - gradient)
        assert error <= 1e-3 * np.linalg.norm(gradient), name
    tokens = batch.tokens[0][:WINDOW]
    there = InferenceEngine(case.compile(target, "int8"), capacity=CONTEXT)
    here = InferenceEngine(case.compile("cpu", "int8"), capacity=CONTEXT)
    for engine in (here, there):
        engine.prefill(tokens[:4])
    np.testing.assert_allclose(there.decode(5), here.decode(5), rtol=1e-4, atol=1e-4)
