"""Every kernel of a model beside the same computation without a schedule.

A kernel is first written as mathematics (`models/kernels`), and a rule then lays it onto a device.
What the mathematics give when a processor goes through them loop by loop is what the device's
kernel must give, so a kernel that is wrong is found by its name, not by a loss that is off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx

from ..models import ModelConfig
from ..schedules import KERNEL
from ..targets import Target, get_target
from .host_code import NAME as HOST_CODE
from .options import CompileOptions
from .pipeline import build_graph, fuse, tvm_target
from .tuning.arguments import Argument, arguments_of
from .tuning.kernels import measured_arguments, measured_sizes


@dataclass(frozen=True)
class KernelCheck:
    """One kernel, and what to try it with.

    Attributes
    ----------
    name : str
        Of the function in a bundle's library.
    kernel : str
        The computation: ``"bitlinear"``; the function's name where it is none of ours.
    arguments : list of dict
        ``dtype``, ``shape`` and ``fill`` of each, see `runtime.kernel_bench.filled`.
    reference : callable
        ``reference(*tensors)`` computes it on the processor, in place.
    """

    name: str
    kernel: str
    arguments: list[Argument]
    reference: Callable[..., Any]


def kernel_checks(
    config: ModelConfig, target: Target, options: CompileOptions
) -> list[KernelCheck]:
    """Return a check for each kernel that a bundle of a model has.

    Parameters
    ----------
    config, target, options
        Of the bundle. Its tensors must be smaller than the target's largest buffer.
    """
    module = fuse(build_graph(config, options, target))
    functions = {
        name.name_hint: function.with_attr("global_symbol", name.name_hint)
        for name, function in module.functions.items()
        if isinstance(function, tirx.PrimFunc)
    }
    plain = tvm.compile(
        tvm.IRModule(functions), target=tvm_target(get_target("cpu")), tir_pipeline=HOST_CODE
    )
    sizes = measured_sizes(options)
    found = []
    for name, function in functions.items():
        kernel = str(function.attrs[KERNEL]) if KERNEL in function.attrs else name
        arguments = arguments_of(kernel, measured_arguments(function, sizes))
        found.append(KernelCheck(name, kernel, arguments, plain[name]))
    return found
