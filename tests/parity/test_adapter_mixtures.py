"""Adapters from files of both formats, of other ranks and modules, mixed: against torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bitfabric.models import MODULES
from bitfabric.runtime import InferenceEngine
from bitfabric.runtime.generate import load_adapters
from bitfabric.runtime.gguf_adapter import write_gguf_adapter
from bitfabric.runtime.gguf_base import base_of_config
from bitfabric.runtime.low_rank import AdapterError, LowRank
from bitfabric.runtime.peft_adapter import target_modules, write_peft

from ..reference.torch_bitnet import TorchBitNet, random_adapter, steady_tokens
from .conftest import Compiled


def test_files_of_both_formats_add_up_with_their_weights(tiny: Compiled, tmp_path: Path) -> None:
    config, modules = tiny.model.config, tiny.options.lora.modules
    some = [module for module in modules if module in ("q_proj", "down_proj")]
    one = LowRank(tmp_path, random_adapter(config, 2, some, seed=1), 2, 3.0, rslora=True)
    # One that changes a single layer: k and v where the bundle has a place for them.
    every = random_adapter(config, 5, [m for m in modules if m != "q_proj"], seed=2)
    two = LowRank(tmp_path, {n: t for n, t in every.items() if ".layers.1." in n}, 5, 10.0)
    write_peft(tmp_path / "one", one, target_modules(one))
    write_gguf_adapter(tmp_path / "one.gguf", one, base_of_config(config.to_dict()))
    write_gguf_adapter(tmp_path / "two.gguf", two, base_of_config(config.to_dict()))

    shares = ((one, one.scale * 0.75), (two, two.scale * 0.5))
    both: dict[str, np.ndarray] = {}
    for adapter, scale in shares:
        for name, tensor in adapter.tensors.items():
            a = name.endswith("lora_A")
            part = tensor if a else scale * tensor
            both[name] = np.concatenate(
                [*([both[name]] if name in both else []), part], 0 if a else 1
            )
    reference = TorchBitNet(tiny.model, both, 1.0)
    tokens = steady_tokens(reference, (1, 10), margin=2e-5)
    expected = reference.logits(tokens)[0, -1].detach().numpy()

    names = [f"{tmp_path}/one:0.25", f"{tmp_path}/one.gguf:0.5", f"{tmp_path}/two.gguf:0.5"]
    engine = InferenceEngine(tiny.bundle, load_adapters(names, tiny.bundle), capacity=64)
    np.testing.assert_allclose(engine.prefill(tokens[0]), expected, rtol=1e-4, atol=2e-4)


def test_modules_that_were_not_compiled_are_refused_by_name(tiny: Compiled, tmp_path: Path) -> None:
    config, modules = tiny.model.config, tiny.options.lora.modules
    missing = [module for module in MODULES if module not in modules]
    if not missing:
        pytest.skip("this bundle has a place for every module")
    adapter = LowRank(tmp_path, random_adapter(config, 2, missing[:1]), 2, 4.0)
    write_gguf_adapter(tmp_path / "a.gguf", adapter, base_of_config(config.to_dict()))
    with pytest.raises(AdapterError, match=rf"{missing[0]}.* no place for") as caught:
        load_adapters([str(tmp_path / "a.gguf")], tiny.bundle)
    assert "--lora-modules" in caught.value.remedy
