"""Whatever the tests compile is valid SPIR-V."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tvm
from bitfabric.compiler.spirv import codegen
from bitfabric.compiler.spirv.kernel import KernelCode, generate
from tvm import tirx

from .runner import has_tool, validate


@pytest.fixture(autouse=True)
def every_module_is_valid(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Validate each module that TVM asked of the generator during a test."""
    made: dict[bytes, KernelCode] = {}

    def kept(function: tirx.PrimFunc, target: tvm.target.Target) -> KernelCode:
        kernel = generate(function, target)
        made[kernel.spirv] = kernel
        return kernel

    monkeypatch.setattr(codegen, "generate", kept)
    yield
    folder: Path = tmp_path_factory.getbasetemp()
    if has_tool("spirv-val"):
        found = {kernel.name: validate(kernel, folder) for kernel in made.values()}
        assert {name: said for name, said in found.items() if said} == {}
