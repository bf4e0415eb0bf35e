"""`tvm_ffi`, and all of TVM, without torch.

They import torch wherever that is installed, which costs seconds and 200 MiB that a process which
never touches torch should not pay.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_torch() -> Iterator[None]:
    """Hide torch from what is imported meanwhile, unless it is there already.

    A None in the place of a module reads as "not installed".
    """
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hide:
            del sys.modules["torch"]


with without_torch():
    import tvm_ffi

__all__ = ["tvm_ffi", "without_torch"]
