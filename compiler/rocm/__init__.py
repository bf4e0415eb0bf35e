"""Machine code for AMD's graphics processors, by TVM's LLVM and LLD, without ROCm.

TVM's own generator writes LLVM's code for the kernels. What they call by name, and what it gets
wrong or has no form for, is rewritten before: :mod:`views`, :mod:`fragments`, :mod:`externs` and
:mod:`barriers` are a pass each. :mod:`functions` and :mod:`matrices` are functions in LLVM's
language that are linked in. Each architecture is compiled by a process of its
own (:mod:`worker`).
"""

from .codegen import build
from .link import check_linker, has_linker
from .quiet import unheard

__all__ = ["build", "check_linker", "has_linker", "unheard"]
