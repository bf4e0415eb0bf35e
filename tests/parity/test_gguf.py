"""A GGUF file and the Hugging Face folder of the same model compile to the same bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model
from bitfabric.models import open_model
from bitfabric.runtime import InferenceEngine, open_bundle
from bitfabric.targets import get_target

from ..reference.gguf_files import tiny, write_gguf, write_hf

OPTIONS = CompileOptions(context=8, lora=LoraOptions(rank=2), head="f16")


@pytest.mark.slow
def test_logits_equal_those_of_the_folder(tmp_path: Path) -> None:
    """A llama has everything at once: rows in another order, a head of its own, two types."""
    model = tiny("llama", hidden=256, ffn=320)
    sources = [write_hf(model, tmp_path / "hf"), write_gguf(model, tmp_path / "m.gguf", "TQ1_0")]
    logits = []
    for number, source in enumerate(sources):
        opened = open_model(str(source))
        bundle = compile_model(opened, get_target("cpu"), OPTIONS, tmp_path / f"{number}.fabric")
        engine = InferenceEngine(open_bundle(bundle), capacity=16)
        logits.append([engine.prefill([1, 17, 30, 4, 49]), engine.decode(8)])
    assert np.isfinite(logits).all()
    assert np.array_equal(*logits)
