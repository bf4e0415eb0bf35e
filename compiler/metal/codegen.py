"""``target.build.metal``: TVM's own generator of MSL, for kernels in words that it knows.

The source travels in the bundle, one text a kernel, and the device's driver compiles it when a
kernel is first launched. TVM's runtime asks for fast arithmetic then, which may reorder sums and
take a division for a product; the first line of our sources asks for the IEEE's instead, and the
functions of the library are named with the precision they shall have, which holds for systems too
old to know that line.
"""

from __future__ import annotations

import re

import tvm
import tvm_ffi
from tvm.tirx import PrimFunc

from .functions import preamble
from .limits import ALIGNMENT, check
from .rewrite import rewritten

KIND = "metal"
_BEGIN = "#include <metal_stdlib>\nusing namespace metal;\n"
"""What TVM's sources begin with."""
_UNION = "\nunion __TVMArgUnion {\n int v_int[2];\n};\n"
"""What follows, and nothing uses where no scalars are passed."""
_SHARED = re.compile(r"^  threadgroup ", re.MULTILINE)
"""A declaration of a threadgroup's memory, which is read as vectors whatever its elements are."""
SAFE = "#pragma METAL fp math_mode(safe)\n"
_generate = tvm_ffi.get_global_func(f"target.build.{KIND}")


def build(module: tvm.IRModule, target: tvm.target.Target) -> tvm.runtime.Module:
    """Return the device module of lowered kernels.

    Parameters
    ----------
    module : IRModule
        Kernels as TVM splits them from the host's code.
    target : tvm.target.Target
        Of the kind ``metal``; its attributes are the limits.

    Raises
    ------
    MetalCodeError
        If a kernel is beyond the target's limits.
    """
    functions: dict[tvm.ir.GlobalVar, PrimFunc] = {}
    for name, function in module.functions.items():
        check(name.name_hint, function, target)
        functions[name] = rewritten(function)
    return _generate(tvm.IRModule(functions, attrs=module.attrs), target)


def _finished(source: str, _target: tvm.target.Target) -> tuple[str, str]:
    """Return a kernel's source with what its calls need, and the name of its form."""
    body = str(source).removeprefix(_BEGIN)
    if "__TVMArgUnion" not in body.removeprefix(_UNION):
        body = body.removeprefix(_UNION)
    body = _SHARED.sub(f"  alignas({ALIGNMENT}) threadgroup ", body)
    return _BEGIN + SAFE + preamble(body) + body, KIND


tvm_ffi.register_global_func(f"target.build.{KIND}", build, override=True)
tvm_ffi.register_global_func("tvm_callback_metal_compile", _finished, override=True)
