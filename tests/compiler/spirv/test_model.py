"""Every kernel of a model's training and inference becomes a valid module."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import tvm
from bitfabric.compiler import CompileOptions, pipeline
from bitfabric.compiler.spirv.kernel import generate
from bitfabric.models.source import open_model
from bitfabric.targets import get_target
from tvm import tirx

from .programs import target
from .runner import captured, validate

OPTIONS = CompileOptions(context=64)


@cache
def kernels(name: str) -> list[tirx.PrimFunc]:
    """Return the lowered kernels of the model that comes with fabric, for a named target."""
    config = open_model("nano").config
    return captured(lambda: pipeline.build(config, get_target(name), OPTIONS, lambda *_: None))


@pytest.mark.parametrize("name", ["vulkan", pytest.param("vulkan-nvidia", marks=pytest.mark.slow)])
def test_kernels_of_training_and_inference_are_valid(name: str, tmp_path: Path) -> None:
    on = tvm.target.Target(dict(get_target(name).options))
    modules = {}
    for function in kernels(name):
        kernel = generate(function, on)
        modules[kernel.spirv] = kernel
        assert kernel.spirv == generate(function, on).spirv
    assert len(modules) > 40
    assert [kernel.name for kernel in modules.values() if validate(kernel, tmp_path)] == []


def test_kernels_fit_the_narrowest_devices(tmp_path: Path) -> None:
    """Descriptors, and neither 64-bit integers nor 16-bit floats nor narrow arithmetic."""
    on = target("int64", "int16", "int8", "float16", "float64", "16bit_buffer", addresses=False)
    allowed = {"storageBuffer8BitAccess"}
    for function in kernels("vulkan"):
        kernel = generate(function, on)
        assert set(kernel.features) <= allowed
        assert kernel.block_bytes <= 128
