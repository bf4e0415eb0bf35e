"""The bytes of a device module, which are the same each time, and how they travel."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from bitfabric.compiler.device_code import NAME as DEVICE_CODE
from bitfabric.compiler.spirv.container import pack_module
from bitfabric.compiler.spirv.grammar import MAGIC
from bitfabric.schedules.gpu.kernel import launch
from tvm.tirx.script.builder import ir as T

from .programs import DESCRIPTORS, doubled, program, target
from .runner import code, needs_device

PROGRAM = """
import sys, tvm
from bitfabric.compiler.device_code import NAME
from bitfabric.compiler.carrier import pack_imports
from tests.compiler.spirv.programs import ADDRESSES, doubled
module = tvm.IRModule({"main": doubled().with_attr("global_symbol", "main")})
built = tvm.compile(module, target=ADDRESSES, tir_pipeline=NAME)
assert tvm.get_global_func("device_api.vulkan", allow_missing=True) is None
built.mod.export_library(sys.argv[1], fpack_imports=pack_imports)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a library that another process compiled, which had not loaded the backend."""
    path = tmp_path_factory.mktemp("library") / "module.so"
    subprocess.run([sys.executable, "-c", PROGRAM, str(path)], check=True)
    return path


class Reader:
    """Reads what the backend reads, in the same order."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def numbers(self, form: str) -> tuple[int, ...]:
        """Return some little-endian numbers."""
        found = struct.unpack_from(f"<{form}", self.content, self.at)
        self.at += struct.calcsize(f"<{form}")
        return found

    def text(self) -> bytes:
        """Return the bytes of a text."""
        (size,) = self.numbers("Q")
        self.at += size
        return self.content[self.at - size : self.at]

    def count(self) -> range:
        """Return the positions of a list."""
        return range(*self.numbers("Q"))


def test_every_field_stands_in_its_place() -> None:
    reader = Reader(pack_module([code(doubled(), DESCRIPTORS)]))
    assert reader.text() == b"spirv"
    assert len(reader.count()) == 1
    assert (reader.text(), reader.text()) == (b"main_kernel", b"main_kernel")
    assert [reader.numbers("BBH") for _ in reader.count()] == [(3, 64, 1), (0, 32, 1)]
    assert [reader.text() for _ in reader.count()] == [b"blockIdx.x", b"threadIdx.x"]
    assert [reader.numbers("i") for _ in reader.count()] == [(0,), (0,)]
    reader = Reader(reader.text())
    assert reader.text() == b"bitfabric.spirv.1"
    assert len(reader.count()) == 1
    assert reader.text() == b"main_kernel"
    # Vulkan 1.1; descriptors, in the push constants, foldable; a scalar and three extents.
    assert reader.numbers("I4B") == (1 << 22 | 1 << 12, 1, 0, 1, 0)
    assert reader.numbers("4I") == (16, 4, 0, 0)
    assert reader.numbers("3I") == (2, 1, 1)
    assert [reader.numbers("2BHI") for _ in reader.count()] == [(1, 3, 0, 0), (0, 0, 0, 0)]
    assert [reader.text() for _ in reader.count()] == []
    assert int.from_bytes(reader.text()[:4], "little") == MAGIC
    assert reader.at == len(reader.content)


def test_two_processes_write_the_same_bytes(library: Path) -> None:
    module = pack_module([code(doubled())])
    assert module == pack_module([code(doubled())])
    assert library.read_bytes().count(module) == 1


@needs_device
def test_what_was_compiled_without_the_backend_runs_with_it(library: Path) -> None:
    module = tvm.runtime.load_module(str(library))
    assert [imported.kind for imported in module.imports] == ["vulkan"]
    x = tvm.runtime.tensor(np.arange(8, dtype="float32"), tvm.runtime.device("vulkan", 0))
    module["main"](x, 7)
    np.testing.assert_array_equal(x.numpy(), [0, 2, 4, 6, 8, 10, 12, 7])


@needs_device
def test_several_kernels_of_one_program() -> None:
    def kernels(x: Any, y: Any) -> None:
        with launch([4], [1]) as (i, _):
            T.buffer_store(y, x[i] + 1, [i])
        with launch([4], [1]) as (i, _):
            T.buffer_store(x, y[3 - i] * 10, [i])

    module = tvm.IRModule(
        {"main": program([(4, "int32")] * 2, kernels).with_attr("global_symbol", "main")}
    )
    built = tvm.compile(module, target=target(), tir_pipeline=DEVICE_CODE)
    device = tvm.runtime.device("vulkan", 0)
    tensors = [tvm.runtime.tensor(np.arange(4, dtype="int32"), device) for _ in range(2)]
    built["main"](*tensors)
    np.testing.assert_array_equal(tensors[0].numpy(), [40, 30, 20, 10])
