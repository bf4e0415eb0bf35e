"""A configuration gives every shape, refuses contradictions, and survives JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from bitfabric.models import MODULES, ModelConfig
from bitfabric.models.random_weights import SHAPES
from bitfabric.targets import FabricError

CONFIG = replace(SHAPES["2B-4T"], num_layers=2)


def test_module_shapes_of_2b_4t() -> None:
    assert {module: CONFIG.module_shape(module) for module in MODULES} == {
        "q_proj": (2560, 2560),
        "k_proj": (640, 2560),
        "v_proj": (640, 2560),
        "o_proj": (2560, 2560),
        "gate_proj": (6912, 2560),
        "up_proj": (6912, 2560),
        "down_proj": (2560, 6912),
    }


def test_parameters_of_2b_4t_are_the_published_number() -> None:
    assert SHAPES["2B-4T"].parameters == 2_412_820_480


def test_a_separate_head_counts() -> None:
    untied = replace(CONFIG, tied_head=False)
    assert untied.parameters - CONFIG.parameters == 128256 * 2560


def test_norms_follow_the_sub_norm_flags() -> None:
    assert CONFIG.norm_shapes()["layers.1.ffn_sub_norm"] == 6912
    plain = replace(CONFIG, attention_sub_norm=False, ffn_sub_norm=False)
    assert not [name for name in plain.norm_shapes() if "sub_norm" in name]
    assert list(plain.norm_shapes())[-1] == "final_norm"


def test_json_round_trip() -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "20 attention heads cannot share 3"),
        ({"head_dim": 63}, "rotary positions need pairs"),
        ({"activation": "tanh"}, "'tanh'"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ],
)
def test_contradictions_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(FabricError, match=message):
        ModelConfig.from_dict({**CONFIG.to_dict(), **change})


def test_missing_and_unknown_fields_are_named() -> None:
    values = CONFIG.to_dict()
    del values["head_dim"]
    with pytest.raises(FabricError, match="head_dim, window"):
        ModelConfig.from_dict({**values, "window": 4})
