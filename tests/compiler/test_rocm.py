"""ROCm bundles made without ROCm: code objects for each architecture, and what is in them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tvm
import tvm_ffi
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model
from bitfabric.compiler.device_code import NAME as DEVICE_CODE
from bitfabric.compiler.pipeline import tvm_target
from bitfabric.compiler.rocm import codegen
from bitfabric.compiler.rocm.container import MAGIC, unpack_code
from bitfabric.compiler.self_test import self_test_kernels
from bitfabric.models import RandomCheckpoint, open_model
from bitfabric.targets import FabricError, get_target
from bitfabric.targets.rocm import (
    ARCHITECTURES,
    MODELS,
    THREADS,
    architectures,
    from_device,
)
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from ..parity.conftest import BASE
from .code_object import abi_version, kernels
from .test_cuda import _twice

OPTIONS = CompileOptions(context=64, lora=LoraOptions(rank=2))
REGISTERS = {"gfx906": 256, "gfx908": 512, "gfx90a": 512, "gfx942": 512}
"""Vector registers of a thread, those for sums included; 256 on all others."""
SCALARS = 106
SCRATCH = 256
"""Bytes of memory in the place of registers that a kernel of attention may take."""
DOT = r"v_dot4c?_i32_i(8|u8)"
PRODUCTS = {
    "gfx90a": (r"v_mfma_i32_16x16x16i8", r"v_mfma_f32_16x16x16f16"),
    "gfx942": (r"v_mfma_i32_16x16x32_i8", r"v_mfma_f32_16x16x16_f16"),
    "gfx1100": (r"v_wmma_i32_16x16x16_iu8", r"v_wmma_f32_16x16x16_f16"),
    "gfx1200": (r"v_wmma_i32_16x16x16_iu8", r"v_wmma_f32_16x16x16_f16"),
}
"""The instructions of matrix units, as LLVM writes them, of bytes and of 16-bit floats."""
WIDE_LOAD = r"global_load_(dwordx4|b128)"
WIDE_SHARED = r"ds_(read|load)_b128"
HOT = (
    "bitlinear_kernel", "bitlinear_vjp", "attention_kernel", "attention_vjp", "cached_attention",
    "decode_attention", "head_loss", "logits", "adamw", "rms_norm",
)  # fmt: skip
"""What runs for each layer or token; all of it has rows that are multiples of 16 bytes."""


class Compiled:
    """A bundle, and what was made on the way to it.

    Attributes
    ----------
    library : bytes
        Its module.
    made : dict
        What was made for each architecture.
    lowered : IRModule
        The kernels as the generators get them.
    """

    def __init__(self, target: str, folder: Path, options: CompileOptions, model: Any) -> None:
        plain = codegen.compile_kernels
        patch = pytest.MonkeyPatch()

        def noted(module: tvm.IRModule, names: list[str]) -> dict[str, codegen.Made]:
            self.lowered, self.made = module, plain(module, names)
            return self.made

        patch.setattr(codegen, "compile_kernels", noted)
        patch.setenv("BITFABRIC_CACHE", str(folder / "cache"))
        with patch.context():
            path = compile_model(model, get_target(target), options, folder / f"{target}.fabric")
        patch.undo()
        self.library = (path / "module.so").read_bytes()


@pytest.fixture(
    scope="module",
    params=["rocm-gfx1100", pytest.param("rocm-gfx90a", marks=pytest.mark.slow)],
)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Return a model of one layer, for training and for inference."""
    model = RandomCheckpoint(replace(BASE, num_layers=1), 1, "random:tiny")
    folder = tmp_path_factory.mktemp(request.param)
    return Compiled(request.param, folder, OPTIONS, model)


def beyond_limits(found: dict[str, dict[str, Any]], architecture: str) -> list[str]:
    """Return what kernels take that the architecture has not, by their notes in a code object."""
    exact = {
        ".wavefront_size": ARCHITECTURES[architecture].wave,
        ".max_flat_workgroup_size": THREADS,
        ".uses_dynamic_stack": False,
    }
    most = {
        ".group_segment_fixed_size": 64 << 10,
        ".vgpr_count": REGISTERS.get(architecture, 256),
        ".sgpr_count": SCALARS,
    }
    told = []
    for name, notes in found.items():
        allowed = {**most, ".private_segment_fixed_size": SCRATCH if "attention" in name else 0}
        wrong = [key for key, value in exact.items() if notes[key] != value]
        wrong += [key for key, value in allowed.items() if notes[key] > value]
        told += [f"{name}: {key} is {notes[key]}" for key in wrong]
    return told


def check_kernels(code: bytes, architecture: str) -> None:
    """Compare what a code object says of each kernel with what the architecture has."""
    assert abi_version(code) == 5
    found = kernels(code)
    assert found
    assert beyond_limits(found, architecture) == []


def by_kernel(text: str) -> dict[str, str]:
    """Return the assembly of each kernel by its name."""
    parts = re.split(r"^(\w+):\s*(?:;.*)?$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def without_wide_loads(text: str) -> list[str]:
    """Return the computations of which no kernel loads sixteen bytes at once."""
    found = by_kernel(text)
    assert found
    return [
        part
        for part in HOT
        if not any(re.search(WIDE_LOAD, each) for name, each in found.items() if part in name)
    ]


def check_assembly(text: str, architecture: str) -> None:
    """Look for the instructions that the schedules count on."""
    assert re.search(DOT, text)
    assert without_wide_loads(text) == []
    assert re.search(WIDE_SHARED, text)
    # Everything is inlined, so no call takes registers to memory and back.
    assert not re.search(r"\bs_swappc_b64\b", text)
    for instruction in PRODUCTS.get(architecture, ()):
        assert re.search(instruction, text), instruction
    for before, barrier in _barriers(text):
        assert barrier, before


def _barriers(text: str) -> Iterator[tuple[list[str], bool]]:
    """Yield what stands before each barrier, and whether writes to shared memory are waited for."""
    lines = [line.strip() for line in text.splitlines()]
    for at, line in enumerate(lines):
        if not re.match(r"s_barrier(_signal)?\b", line):
            continue
        before: list[str] = []
        for earlier in reversed(lines[:at]):
            if earlier.startswith(("ds_write", "ds_store", "s_waitcnt", "s_wait_", ".LBB")):
                before.append(earlier)
                break
        yield before, not before or not before[0].startswith(("ds_write", "ds_store"))


def test_every_kernel_keeps_to_its_architecture(tiny: Compiled) -> None:
    for architecture, made in tiny.made.items():
        check_kernels(made.code, architecture)
        check_assembly(made.assembly, architecture)


def test_registers_and_memory_beyond_the_limits_are_told(tiny: Compiled) -> None:
    ((architecture, made),) = tiny.made.items()
    name, notes = next((n, k) for n, k in kernels(made.code).items() if "attention" not in n)
    assert beyond_limits({name: notes}, architecture) == []
    most = REGISTERS.get(architecture, 256)
    for key, value in (
        (".vgpr_count", most + 1),
        (".sgpr_count", SCALARS + 1),
        (".group_segment_fixed_size", (64 << 10) + 4),
        (".private_segment_fixed_size", 4),
        (".wavefront_size", 96 - notes[".wavefront_size"]),
        (".max_flat_workgroup_size", 1024),
        (".uses_dynamic_stack", True),
    ):
        told = beyond_limits({name: {**notes, key: value}}, architecture)
        assert told == [f"{name}: {key} is {value}"]


def test_narrow_loads_are_told(tiny: Compiled) -> None:
    for made in tiny.made.values():
        narrow = re.sub(WIDE_LOAD, "global_load_b32", made.assembly)
        assert without_wide_loads(narrow) == list(HOT)


def wide_indices(functions: dict[str, Any]) -> set[str]:
    """Return the kernels that index memory by 64-bit integers."""
    wide = set()
    for name, function in functions.items():

        def look(node: Any, name: str = name) -> None:
            if any("int64" in str(index.ty.dtype) for index in node.indices):
                wide.add(name)

        for kind in (tvm.ir.TensorLoad, tvm.tirx.BufferStore):
            tvm_ffi.structural_walk(function.body, (kind, look))
    return wide


def test_indices_are_of_32_bits(tiny: Compiled) -> None:
    functions = {name.name_hint: each for name, each in tiny.lowered.functions.items()}
    # What TVM itself writes for a few elements each: tables, one addition, one row.
    found = {re.sub(r"\d*_kernel.*", "", name) for name in wide_indices(functions)}
    assert found <= {"rope_table", "add", "take"}


def test_an_index_of_64_bits_is_told() -> None:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"global_symbol": "copy"})
        x, y = (T.arg(name, T.buffer([tirx.const(64, "int64")], "float32")) for name in "xy")
        with T.serial(0, tirx.const(64, "int64")) as i:
            T.buffer_store(y, x[i], [i])
    assert wide_indices({"copy": builder.get()}) == {"copy"}


def test_a_bundle_carries_the_code_objects_and_no_source(tiny: Compiled) -> None:
    assert tiny.library.count(MAGIC) == 1
    found = unpack_code(tiny.library[tiny.library.index(MAGIC) :])
    assert found == {name: made.code for name, made in tiny.made.items()}
    assert b"\x03\0\0\0\0\0\0\0hip" in tiny.library
    assert b"const_loader" not in tiny.library
    # The module lists exactly the kernels that the code object has.
    for made in tiny.made.values():
        for name in kernels(made.code):
            assert name.encode() in made.head


@pytest.mark.slow
def test_the_functions_our_kernels_name_compile_for_every_architecture(
    capfd: pytest.CaptureFixture[str],
) -> None:
    names = set(self_test_kernels(get_target("rocm"), 64, 2))
    assert names == {"floats", "sums", "dots", "halves", "subgroups"}
    # TVM's warnings of a ROCm that is not there are for nobody.
    assert "ROCm" not in capfd.readouterr().err


def test_a_kernel_that_llvm_refuses_is_a_users_error() -> None:
    target = tvm_target(get_target("rocm-gfx90a"))
    with pytest.raises(FabricError, match=r"kernels for .*gfx90a.* failed|undefined.*nobody"):
        tvm.compile(_twice("nobody"), target=target, tir_pipeline=DEVICE_CODE)


def test_without_the_linker_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "ziglang" else find(name)
    )
    monkeypatch.setenv("BITFABRIC_CACHE", str(tmp_path / "cache"))
    model = RandomCheckpoint(replace(BASE, num_layers=1), 1, "random:tiny")
    with pytest.raises(FabricError, match="the package ziglang is missing") as caught:
        compile_model(model, get_target("rocm"), OPTIONS, tmp_path / "tiny.fabric")
    assert caught.value.remedy == "Install it: pip install 'bitfabric[linker]'"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("context", [1, 128])
@pytest.mark.parametrize("target", [each.name for each in MODELS])
def test_every_kernel_of_nano_compiles_for_every_preset(
    tmp_path: Path, target: str, context: int
) -> None:
    options = replace(OPTIONS, context=context)
    compiled = Compiled(target, tmp_path, options, open_model("nano"))
    for architecture, made in compiled.made.items():
        check_kernels(made.code, architecture)
        if context > 1:
            check_assembly(made.assembly, architecture)


@pytest.mark.slow
def test_one_bundle_has_code_for_every_architecture(tmp_path: Path) -> None:
    compiled = Compiled("rocm", tmp_path, OPTIONS, open_model("nano"))
    found = unpack_code(compiled.library[compiled.library.index(MAGIC) :])
    assert list(found) == architectures(get_target("rocm"))
    for architecture, code in found.items():
        check_kernels(code, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_device_in_hand_may_be_of_any_known_architecture(architecture: str) -> None:
    target = from_device({"name": "a device", "architecture": architecture})
    assert len(self_test_kernels(target, 64, 2)) == 5
