"""Checkpoint to logits for every family: a Hugging Face folder, compiled, against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model
from bitfabric.models import open_model
from bitfabric.runtime import InferenceEngine, open_bundle
from bitfabric.targets import get_target

from ..reference.test_torch_bitnet import float32_folder, transformers_model
from ..reference.torch_bitnet import TorchBitNet, steady_tokens

LENGTH = 12


def engine_of(folder: Path, output: Path, head: str = "f16") -> InferenceEngine:
    options = CompileOptions(context=8, lora=LoraOptions(rank=2), head=head)
    compile_model(open_model(str(folder)), get_target("cpu"), options, output)
    return InferenceEngine(open_bundle(output), capacity=LENGTH)


@pytest.mark.parametrize(
    ("family", "storage"),
    [("bitnet", "autobitlinear"), ("bitnet", "online"), ("llama", "bitlinear")],
)
def test_logits_equal_transformers(tmp_path: Path, family: str, storage: str) -> None:
    folder = float32_folder(tmp_path / "model", family, storage)
    tokens = steady_tokens(TorchBitNet(open_model(str(folder))), (1, LENGTH), margin=2e-5)
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        expected = transformers_model(folder)(torch.as_tensor(tokens)).logits[0].numpy()
    engine = engine_of(folder, tmp_path / "model.fabric")
    logits = [engine.prefill(tokens[0, :6])] + [engine.decode(t) for t in tokens[0, 6:]]
    np.testing.assert_allclose(logits, expected[5:], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_logits_of_1bitllm_equal_the_reference(tmp_path: Path) -> None:
    folder = float32_folder(tmp_path / "model", "1bitllm", "online")
    reference = TorchBitNet(open_model(str(folder)))
    tokens = steady_tokens(reference, (1, LENGTH), margin=2e-5)
    expected = reference.logits(tokens)[0].detach().numpy()
    logits = engine_of(folder, tmp_path / "model.fabric").prefill(tokens[0])
    np.testing.assert_allclose(logits, expected[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_an_int8_head_is_the_head_rounded_to_its_rows_scales(tmp_path: Path) -> None:
    folder = float32_folder(tmp_path / "model", "llama", "online")
    model = open_model(str(folder))
    engine = engine_of(folder, tmp_path / "model.fabric", head="int8")
    ends = engine.bundle.ends
    rounded = {n: ends[n] * ends[f"{n}_scale"][:, None] for n in ("embedding", "head")}
    for name, exact in (("embedding", model.embedding()), ("head", model.head())):
        scale = ends[f"{name}_scale"][:, None]
        assert np.abs(rounded[name] - exact).max() <= 0.5001 * scale.max()

    reference = TorchBitNet(model, head=rounded["head"])
    reference.embedding = torch.as_tensor(rounded["embedding"])
    tokens = steady_tokens(reference, (1, LENGTH), margin=2e-5)
    expected = reference.logits(tokens)[0].detach().numpy()
    np.testing.assert_allclose(engine.prefill(tokens[0]), expected[-1], rtol=1e-4, atol=1e-4)
