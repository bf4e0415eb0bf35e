"""CUDA: how lowered TIR becomes machine code for NVIDIA's processors, without any of them here.

To import this package is to give TVM the function that builds for targets of the kind ``cuda``
(`codegen`). TVM writes CUDA C++, to which `functions` adds what our kernels call by name; `compile`
makes code of it with the compilers that `toolkit` finds, and `container` packs that as TVM's CUDA
runtime reads it.
"""

from . import functions  # noqa: F401  to load it is to give TVM what it holds
from .codegen import build
from .toolkit import find_toolkit, has_toolkit

__all__ = ["build", "find_toolkit", "has_toolkit"]
