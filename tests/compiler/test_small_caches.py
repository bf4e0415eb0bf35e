"""Kernels over caches in words become code for the devices that no test machine has."""

from __future__ import annotations

import pytest
import tvm
from bitfabric.compiler.device_code import NAME as DEVICE_CODE
from bitfabric.compiler.pipeline import tvm_target
from bitfabric.schedules import schedule
from bitfabric.targets import get_target

from ..schedules.test_small_caches import WIDTHS, _function, every_cache
from .metal.emulation import complaints, needs_compiler
from .metal.sources import captured
from .test_cuda import needs_toolkit

KERNELS = ("append_kv", "cached_attention", "decode_attention")


def _compile(target: str, kv_cache: str) -> None:
    chosen = get_target(target)
    for kernel in KERNELS:
        _, function = schedule(_function(kernel, WIDTHS[64], kv_cache), chosen)
        module = tvm.IRModule({kernel: function.with_attr("global_symbol", kernel)})
        tvm.compile(module, target=tvm_target(chosen), tir_pipeline=DEVICE_CODE)


@needs_compiler
@pytest.mark.slow
@every_cache
def test_metal(kv_cache: str) -> None:
    sources = captured(lambda: _compile("metal", kv_cache))
    assert len(sources) >= len(KERNELS)
    assert complaints(sources) == []


@pytest.mark.slow
@every_cache
def test_rocm(kv_cache: str) -> None:
    for target in ("rocm-gfx1100", "rocm-gfx90a"):
        _compile(target, kv_cache)


@needs_toolkit
@pytest.mark.slow
@every_cache
def test_cuda(kv_cache: str) -> None:
    _compile("cuda-sm90", kv_cache)
