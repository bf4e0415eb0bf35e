"""CUDA C++ as our kernels become it, run on the processor: a device's arithmetic without one."""

from .emulation import Emulation, missing_compiler

__all__ = ["Emulation", "missing_compiler"]
