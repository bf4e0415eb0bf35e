"""SPIR-V: how lowered TIR becomes the kernels of a Vulkan device module.

To import this package is to give TVM the function that builds for targets of the kind ``vulkan``
(`codegen`). One kernel (`kernel`) is written from the inside out:

- `statements`, `expressions` and `calls` walk TIR; `math_functions`, `subgroups` and `matrices` are
  the calls' larger families.
- They compute with `arithmetic`, `conversions` and `bits` on `values`; `pairs` is arithmetic where
  the device has no 64-bit integers.
- `interface` is what a kernel is given, `launch` where a thread is, `memory` and `arrays` what it
  reads and writes.
- `builder` writes instructions, `types` the types; `grammar` has their numbers.

What comes out is packed by `container` for ``runtime/native/vulkan``.
"""

from .codegen import build

__all__ = ["build"]
