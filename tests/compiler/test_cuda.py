"""CUDA bundles made without a device: code for each architecture, and never source alone."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tvm
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model
from bitfabric.compiler.cuda import has_toolkit
from bitfabric.compiler.cuda.compile import compile_source
from bitfabric.compiler.cuda.container import pack_module
from bitfabric.compiler.device_code import NAME as DEVICE_CODE
from bitfabric.compiler.pipeline import tvm_target
from bitfabric.models import RandomCheckpoint, open_model
from bitfabric.targets import FabricError, get_target
from bitfabric.targets.cuda import architectures

from ..parity.conftest import BASE
from .fat_binary import ELF, PTX, parts, within

OPTIONS = CompileOptions(context=64, lora=LoraOptions(rank=2))
SOURCE = """
extern "C" __global__ void __launch_bounds__(32) first(int* p) { p[threadIdx.x] = 1; }
extern "C" __global__ void __launch_bounds__(32) second(int* p) {
  p[threadIdx.x] = missing;
}
"""

needs_toolkit = pytest.mark.skipif(
    not has_toolkit(), reason="NVIDIA's compilers are not installed: pip install 'bitfabric[cuda]'"
)


def code_for(names: list[str]) -> list[tuple[int, int]]:
    """Return the parts that a container for these architectures has."""
    numbers = [int(name.removeprefix("sm_")) for name in names]
    return sorted([*((ELF, number) for number in numbers), (PTX, numbers[0])])


@needs_toolkit
def test_a_container_has_the_architectures_and_code_for_newer_ones() -> None:
    names = ["sm_75", "sm_90", "sm_120"]
    source = SOURCE.replace("missing", "2")
    assert sorted(parts(compile_source(source, names))) == code_for(names)


@needs_toolkit
def test_a_kernel_that_the_compiler_refuses_is_named() -> None:
    with pytest.raises(FabricError, match='the kernel second: identifier "missing" is undefined'):
        compile_source(SOURCE, ["sm_80"])


@needs_toolkit
def test_its_refusal_is_a_users_error_through_tvm_as_well() -> None:
    target = tvm_target(get_target("cuda-sm80"))
    with pytest.raises(FabricError, match=r"the kernel twice_kernel: .*nobody.* is undefined"):
        tvm.compile(_twice("nobody"), target=target, tir_pipeline=DEVICE_CODE)


@needs_toolkit
@pytest.mark.slow
def test_a_bundle_carries_machine_code_and_no_source(tmp_path: Path) -> None:
    model = RandomCheckpoint(replace(BASE, num_layers=1), 1, "random:tiny")
    path = compile_model(model, get_target("cuda-sm80"), OPTIONS, tmp_path / "tiny.fabric")
    module = (path / "module.so").read_bytes()
    assert sorted(parts(within(module))) == code_for(["sm_80"])
    assert b"__global__" not in module
    assert b"const_loader" not in module
    assert b"\x04\0\0\0\0\0\0\0cuda" in module


@needs_toolkit
@pytest.mark.slow
@pytest.mark.parametrize("context", [1, 128])
def test_every_kernel_of_nano_compiles_for_every_architecture(tmp_path: Path, context: int) -> None:
    target = get_target("cuda")
    options = replace(OPTIONS, context=context)
    path = compile_model(open_model("nano"), target, options, tmp_path / "nano.fabric")
    found = parts(within((path / "module.so").read_bytes()))
    assert sorted(found) == code_for(architectures(target))


@needs_toolkit
def test_the_functions_our_kernels_name_compile_for_the_oldest_and_the_newest() -> None:
    from bitfabric.compiler.self_test import self_test_kernels

    for name in ("cuda-sm75", "cuda-sm120"):
        kernels = self_test_kernels(get_target(name), 64, 2)
        assert set(kernels) == {"floats", "sums", "dots", "halves", "subgroups"}


def test_a_module_is_written_as_tvm_writes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # TVM's module without a runtime carries the source in the same form.
    monkeypatch.setenv("TVM_COMPILE_FORCE_FALLBACK", "1")
    compiled = tvm.compile(
        _twice(), target=tvm_target(get_target("cuda")), tir_pipeline=DEVICE_CODE
    )
    (module,) = (m for m in compiled.mod.imports if m.kind == "cuda")
    packed = tvm.get_global_func("runtime.ModulePackImportsToTensor")(compiled.mod).numpy()
    own = pack_module("cuda", _kernels(), module.inspect_source().encode())
    assert own in packed.tobytes()


def _twice(function: str = "") -> tvm.IRModule:
    """Return a kernel that doubles, and calls a function first if one is named."""
    from bitfabric.schedules.gpu.kernel import elements
    from tvm import tirx
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script.builder import ir as T

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True, "global_symbol": "twice"})
        x, y = (T.arg(n, T.buffer([tirx.const(64, "int32")], "float32")) for n in "xy")

        def double(i: Any) -> None:
            value = T.call_pure_extern("float32", function, x[i]) if function else x[i]
            T.buffer_store(y, value + value, [i])

        elements(64, 32, double)
    return tvm.IRModule({"twice": builder.get()})


class _Info:
    """What TVM tells of the kernel of `_twice`."""

    name = "twice_kernel"
    arg_types = tuple(tvm.DataType("handle") for _ in "xy")
    launch_param_tags = ("blockIdx.x", "threadIdx.x")
    arg_extra_tags = (0, 0)


def _kernels() -> dict[str, Any]:
    return {"twice_kernel": _Info()}


def test_without_the_compilers_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "nvidia" else find(name)
    )
    monkeypatch.setenv("BITFABRIC_CACHE", str(tmp_path / "cache"))
    model = RandomCheckpoint(replace(BASE, num_layers=1), 1, "random:tiny")
    with pytest.raises(FabricError, match="nvidia-cuda-nvrtc, nvidia-cuda-nvcc") as caught:
        compile_model(model, get_target("cuda"), OPTIONS, tmp_path / "tiny.fabric")
    assert caught.value.remedy == "Install it: pip install 'bitfabric[cuda]'"
    assert list(tmp_path.iterdir()) == []
