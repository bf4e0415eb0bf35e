"""Compiled tiny models, one for each kind of architecture, beside their torch references."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model
from bitfabric.models import MODULES, ModelConfig, RandomCheckpoint
from bitfabric.runtime import Bundle, open_bundle
from bitfabric.runtime.backends import devices
from bitfabric.targets import automatic, get_target

BASE = ModelConfig(
    family="random",
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=61,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    activation="relu2",
    attention_sub_norm=True,
    ffn_sub_norm=True,
    tied_head=True,
    max_context=128,
    bos_token_id=None,
    eos_token_ids=(),
)
CASES: dict[str, dict[str, Any]] = {
    "grouped-query-relu2": {},
    "silu-untied-no-subnorm": {
        "config": {
            "activation": "silu",
            "num_kv_heads": 4,
            "tied_head": False,
            "attention_sub_norm": False,
            "ffn_sub_norm": False,
        },
    },
    "some-modules-two-rows": {
        "config": {"activation": "silu", "num_kv_heads": 1},
        "lora": {"rank": 3, "modules": ("q_proj", "v_proj", "down_proj"), "rslora": True},
        "options": {"micro_batch": 2},
    },
}


@dataclass(frozen=True)
class Compiled:
    """A tiny model, what it was compiled with, and its bundle."""

    model: RandomCheckpoint
    options: CompileOptions
    bundle: Bundle


def compile_tiny(
    folder: Path, case: dict[str, Any], target: str = "cpu", **options: Any
) -> Compiled:
    """Compile a case for a target."""
    config = replace(BASE, **case.get("config", {}))
    model = RandomCheckpoint(config, seed=3, name="random:tiny")
    lora = LoraOptions(**{"rank": 4, "modules": MODULES, **case.get("lora", {})})
    chosen = {"context": 12, "head": "f16", **case.get("options", {}), **options}
    compiled = CompileOptions(lora=lora, **chosen)
    api = automatic(target)
    chosen = get_target(target, devices(api.kind)[0] if api else None)
    compile_model(model, chosen, compiled, folder / "tiny.fabric")
    return Compiled(model, compiled, open_bundle(folder / "tiny.fabric"))


@pytest.fixture(scope="session", params=list(CASES))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Every case in turn, compiled for this machine."""
    return compile_tiny(tmp_path_factory.mktemp(request.param), CASES[request.param])


def random_starts(rows: int, context: int, seed: int) -> np.ndarray:
    """Draw where the documents of each row begin, int32 ``(rows, context)``."""
    generator = np.random.default_rng(seed)
    cuts = generator.random((rows, context)) < 0.25
    cuts[:, 0] = True
    places = np.where(cuts, np.arange(context), 0)
    return np.maximum.accumulate(places, axis=1).astype(np.int32)
