"""The compiled training step against torch's autograd on the same weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from bitfabric.runtime import Batch, TrainingEngine

from ..reference.torch_bitnet import TorchBitNet, random_adapter, steady_tokens
from .conftest import CASES, Compiled, compile_tiny, random_starts


def labelled(batch: Batch) -> int:
    """Positions with a loss."""
    return int((batch.labels >= 0).sum())


def setting(tiny: Compiled, seed: int = 0):
    """A random adapter, its reference, and a batch on which rounding decides nothing."""
    options = tiny.options
    adapter = random_adapter(
        tiny.model.config, rank=options.lora.rank, modules=options.lora.modules, seed=seed
    )
    reference = TorchBitNet(tiny.model, adapter, options.lora.scale)
    shape = (options.micro_batch, options.context)
    starts = random_starts(*shape, seed)
    tokens = steady_tokens(reference, shape, starts, margin=2e-5)
    labels = np.random.default_rng(seed).integers(0, tiny.model.config.vocab_size, shape, np.int32)
    labels[:, :3] = -100
    return adapter, reference, Batch(tokens, labels, starts)


def test_loss_and_every_lora_gradient_equal_torchs(tiny: Compiled) -> None:
    adapter, reference, batch = setting(tiny)
    engine = TrainingEngine(tiny.bundle)
    engine.load_adapter_tensors(adapter)
    loss = engine.accumulate(batch, 1.0, seed=0)
    expected = reference.loss(batch.tokens, batch.labels, batch.starts).item()
    assert loss == pytest.approx(expected, rel=1e-5)
    gradients = engine.gradient_tensors()
    _, wanted = reference.gradients(batch.tokens, batch.labels, batch.starts)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        size = np.abs(wanted[name]).max()
        assert size > 0, name
        np.testing.assert_allclose(
            gradient, wanted[name], rtol=1e-4, atol=1e-4 * size, err_msg=name
        )


def test_micro_batches_add_up_to_one_batch(tiny: Compiled) -> None:
    adapter, _, batch = setting(tiny)
    engine = TrainingEngine(tiny.bundle)
    engine.load_adapter_tensors(adapter)
    engine.accumulate(batch, 0.25, seed=0)
    once = engine.gradient_tensors()
    engine.accumulate(batch, 0.25, seed=0)
    for name, gradient in engine.gradient_tensors().items():
        np.testing.assert_allclose(gradient, 2 * once[name], rtol=1e-6, atol=1e-9)


def test_evaluation_equals_the_training_loss(tiny: Compiled) -> None:
    adapter, _, batch = setting(tiny)
    engine = TrainingEngine(tiny.bundle)
    engine.load_adapter_tensors(adapter)
    assert engine.evaluate(batch) == engine.accumulate(batch, 1.0, seed=0)


def test_update_is_torchs_adamw_with_clipping(tiny: Compiled) -> None:
    adapter, _, batch = setting(tiny)
    engine = TrainingEngine(tiny.bundle)
    engine.load_adapter_tensors(adapter)
    parameters = {n: torch.from_numpy(v.copy()).requires_grad_() for n, v in adapter.items()}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
    )
    for step in (1, 2, 3):
        engine.accumulate(batch, 1.0 / labelled(batch), seed=0)
        # The optimiser is judged on the engine's own gradients: rounding can't tell them apart.
        for name, gradient in engine.gradient_tensors().items():
            parameters[name].grad = torch.from_numpy(gradient)
        norm = engine.update(
            learning_rate=3e-3, step=step, beta2=0.95, weight_decay=0.1, clip_norm=0.5
        )
        expected = torch.nn.utils.clip_grad_norm_(parameters.values(), 0.5)
        assert norm == pytest.approx(float(expected), rel=1e-5)
        optimizer.step()
    for name, value in engine.adapter_tensors().items():
        wanted = parameters[name].detach().numpy()
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=2e-6, err_msg=name)


def test_the_same_seed_gives_the_same_bits(tiny: Compiled) -> None:
    states = []
    for _ in range(2):
        engine = TrainingEngine(tiny.bundle)
        engine.initialize_adapter(seed=7)
        _, _, batch = setting(tiny)
        for step in (1, 2, 3):
            engine.accumulate(batch, 1.0 / labelled(batch), seed=step)
            engine.update(learning_rate=1e-2, step=step)
        states.append(engine.state())
    for name in states[0]:
        np.testing.assert_array_equal(states[0][name], states[1][name])


def test_initial_adapter_is_pefts(tiny: Compiled) -> None:
    engine = TrainingEngine(tiny.bundle)
    engine.initialize_adapter(seed=1)
    for name, value in engine.adapter_tensors().items():
        if name.endswith("lora_B"):
            assert not value.any()
        else:
            bound = 1.0 / math.sqrt(value.shape[1])
            assert np.abs(value).max() <= bound
            assert value.std() == pytest.approx(bound / math.sqrt(3.0), rel=0.3)


@pytest.mark.slow
def test_dropout_scales_masks_and_repeats(tmp_path) -> None:
    plain = compile_tiny(tmp_path / "a", CASES["grouped-query-relu2"])
    dropped = compile_tiny(tmp_path / "b", {"lora": {"dropout": 0.5}})
    adapter, _, batch = setting(plain)
    engines = [TrainingEngine(each.bundle) for each in (plain, dropped)]
    for engine in engines:
        engine.load_adapter_tensors(adapter)
    base, masked = engines
    assert masked.evaluate(batch) == base.evaluate(batch), "evaluation must not drop"
    losses = [masked.accumulate(batch, 1.0, seed=seed) for seed in (1, 1, 2, 3)]
    assert losses[0] == losses[1]
    assert len({losses[0], *losses[2:], base.evaluate(batch)}) == 4
    # The mask of the adjoint is the forward pass's: a small step along the gradient lowers the
    # loss under the same mask by the step's first-order amount.
    masked.initialize_adapter(0)
    masked.load_adapter_tensors(adapter)
    before = masked.accumulate(batch, 1.0, seed=5)
    gradients = masked.gradient_tensors()
    # In the last layer nothing is quantised after the adapter, so the loss is smooth in it.
    name = "model.layers.1.mlp.down_proj.lora_B"
    step = 1e-3 / np.abs(gradients[name]).max()
    moved = {n: v - step * gradients[n] * (n == name) for n, v in adapter.items()}
    masked.load_adapter_tensors(moved)
    after = masked.accumulate(batch, 1.0, seed=5)
    assert after - before == pytest.approx(-step * float((gradients[name] ** 2).sum()), rel=0.05)


@pytest.mark.parametrize("moments", ["bf16", "int8"])
@pytest.mark.slow
def test_moments_of_fewer_bits_go_on_from_what_was_stored(tmp_path, moments: str) -> None:
    tiny = compile_tiny(tmp_path, CASES["grouped-query-relu2"], moments=moments)
    assert tiny.bundle.manifest["moments"] == moments
    adapter, _, batch = setting(tiny)
    whole, first, second = (TrainingEngine(tiny.bundle) for _ in range(3))
    losses = []
    for engine in (whole, first):
        engine.load_adapter_tensors(adapter)
    for step in (1, 2, 3, 4):
        engine = first if step < 3 else second
        if step == 3:
            second.load_state(first.state())
        for each in (whole, engine):
            losses.append(each.accumulate(batch, 1.0 / labelled(batch), seed=0))
            each.update(learning_rate=3e-3, step=step, clip_norm=0.5)
    assert losses[::2] == losses[1::2]
    assert losses[-1] < losses[0]
    for name, value in whole.state().items():
        np.testing.assert_array_equal(value, second.state()[name], err_msg=name)


@pytest.mark.slow
def test_both_packings_give_the_same_bits(tmp_path) -> None:
    losses = []
    for packing in ("2bit", "1.6bit"):
        folder = tmp_path / packing
        folder.mkdir()
        tiny = compile_tiny(folder, CASES["grouped-query-relu2"], packing=packing)
        adapter, _, batch = setting(tiny)
        engine = TrainingEngine(tiny.bundle)
        engine.load_adapter_tensors(adapter)
        losses.append([])
        for step in (1, 2):
            losses[-1].append(engine.accumulate(batch, 1.0 / labelled(batch), seed=0))
            engine.update(learning_rate=3e-3, step=step)
    assert losses[0] == losses[1]
