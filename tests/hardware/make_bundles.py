"""Compile the bundles that the tests here compare, to be sent to a machine with a GPU.

Run as ``python tests/hardware/make_bundles.py FOLDER [--target vulkan-nvidia …] [--cpu cpu-avx2]``;
there, with the runtime alone: ``FABRIC_HARDWARE_BUNDLES=FOLDER python -m pytest --noconftest
tests/hardware``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from bitfabric.compiler import CompileOptions, LoraOptions, compile_model
from bitfabric.models import ModelConfig, RandomCheckpoint, open_model
from bitfabric.targets import get_target

WIDE = ModelConfig(
    family="random",
    hidden_size=256,
    intermediate_size=688,
    num_layers=2,
    num_heads=8,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=1003,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    activation="relu2",
    attention_sub_norm=True,
    ffn_sub_norm=True,
    tied_head=True,
    max_context=512,
    bos_token_id=None,
    eos_token_ids=(),
)


def main() -> None:
    """Compile every case for two kinds of processor and for the device, by each of its APIs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", action="append", help="opencl-nvidia and vulkan-nvidia")
    parser.add_argument("--cpu", default="cpu-avx2")
    arguments = parser.parse_args()
    llama = replace(
        WIDE, activation="silu", num_kv_heads=8, attention_sub_norm=False, ffn_sub_norm=False
    )
    cases = {
        "relu2": (RandomCheckpoint(WIDE, 1, "random:relu2"), CompileOptions(context=96)),
        "silu": (
            RandomCheckpoint(replace(llama, tied_head=False), 2, "random:silu"),
            CompileOptions(context=77, micro_batch=2, lora=LoraOptions(rank=3, dropout=0.1)),
        ),
        "nano": (open_model("nano"), CompileOptions(context=128)),
    }
    for name, (model, options) in cases.items():
        kinds = {"cpu": arguments.cpu, "other": "cpu-x86-64"}
        for target in arguments.target or ("opencl-nvidia", "vulkan-nvidia"):
            kinds[f"on-{target}"] = target
        for kind, target in kinds.items():
            path = arguments.folder / f"{name}-{kind}.fabric"
            compile_model(model, get_target(target), options, path)
            print(path)


if __name__ == "__main__":
    main()
