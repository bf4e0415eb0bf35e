"""Metal: how lowered TIR becomes the Metal Shading Language, on any machine.

To import this package is to give TVM the function that builds for targets of the kind ``metal``
(`codegen`). TVM writes MSL of kernels that `rewrite` has put into words it knows; `functions` adds
what our kernels call by name, and `limits` refuses what no device of Apple's could launch.
"""

from .codegen import build

__all__ = ["build"]
