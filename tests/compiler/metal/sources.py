"""The MSL of a model's kernels, as a bundle would carry it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import tvm_ffi
from bitfabric.compiler import CompileOptions, LoraOptions
from bitfabric.compiler.pipeline import build
from bitfabric.models import ModelConfig, open_model
from bitfabric.targets import Target, get_target

from ...parity.conftest import BASE

TINY = replace(BASE, hidden_size=128, intermediate_size=192, head_dim=32, num_layers=1)
OPTIONS = CompileOptions(context=64, lora=LoraOptions(rank=2))
FINISH = "tvm_callback_metal_compile"
_NAME = re.compile(r"^kernel void (\w+)\(", re.MULTILINE)


def captured(compile_all: Callable[[], object]) -> dict[str, str]:
    """Return the sources of the kernels that are compiled meanwhile, by their names."""
    found: dict[str, str] = {}
    finish = tvm_ffi.get_global_func(FINISH)

    def keep(source: str, for_target: Any) -> Any:
        text, form = finish(source, for_target)
        name = _NAME.search(str(text))
        assert name is not None
        found[name[1]] = str(text)
        return text, form

    tvm_ffi.register_global_func(FINISH, keep, override=True)
    try:
        compile_all()
    finally:
        tvm_ffi.register_global_func(FINISH, finish, override=True)
    return found


def _sources(config: ModelConfig, target: Target, options: CompileOptions) -> dict[str, str]:
    """Compile a model and return its kernels' sources by their names."""
    return captured(lambda: build(config, target, options, lambda phase, fraction: None))


@cache
def tiny_sources() -> dict[str, str]:
    """Return the kernels of a small model that uses matrices, for any Mac."""
    return _sources(TINY, get_target("metal"), OPTIONS)


def nano_sources(target: str, context: int, head: str) -> dict[str, str]:
    """Return the kernels of nano for a target."""
    options = replace(OPTIONS, context=context, head=head)
    return _sources(open_model("nano").config, get_target(target), options)
