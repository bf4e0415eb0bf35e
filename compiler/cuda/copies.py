"""Copies to shared memory that go on beside the threads, as device functions in CUDA C++.

`schedules/gpu/copies.py` says what they do. Processors before Ampere have none: there a copy is
made when it is asked for, and nothing has to be waited for.
"""

from __future__ import annotations

import re

PREFIX = "fabric_copy_"
_WAIT = re.compile(rf"{PREFIX}wait_(\d+)")
_VECTOR = """\
  unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(place));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;"
               :: "r"(to), "l"(source) : "memory");
"""
_PLAIN = "  *static_cast<int4*>(place) = *static_cast<const int4*>(source);\n"


def copy_function(name: str) -> str | None:
    """Return the text of a function by its name; None for others."""
    if name == f"{PREFIX}vector":
        return _either("void* place, const void* source", name, _VECTOR, _PLAIN)
    if name == f"{PREFIX}close":
        return _either("", name, _asm("cp.async.commit_group;"))
    if waiting := _WAIT.fullmatch(name):
        return _either("", name, _asm(f"cp.async.wait_group {waiting[1]};"))
    return None


def _asm(instruction: str) -> str:
    return f'  asm volatile("{instruction}" ::: "memory");\n'


def _either(parameters: str, name: str, beside: str, otherwise: str = "") -> str:
    head = f"static __forceinline__ __device__ void {name}({parameters}) {{\n"
    plain = f"#else\n{otherwise}" if otherwise else ""
    return f"{head}#if __CUDA_ARCH__ >= 800\n{beside}{plain}#endif\n}}\n"
