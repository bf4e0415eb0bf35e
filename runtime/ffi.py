"""`tvm_ffi` without torch.

It imports torch wherever that is installed, which costs two seconds and 200 MiB that a process
which never touches torch should not pay. A None in the place of a module reads as "not installed"
for as long as the import lasts.
"""

from __future__ import annotations

import sys

_HIDE = "torch" not in sys.modules
if _HIDE:
    sys.modules["torch"] = None  # type: ignore[assignment]
try:
    import tvm_ffi
finally:
    if _HIDE:
        del sys.modules["torch"]

__all__ = ["tvm_ffi"]
