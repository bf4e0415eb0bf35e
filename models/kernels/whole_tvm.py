"""The first import of TVM, by whatever needs its compiler."""

from __future__ import annotations

from ...targets.ffi import without_torch

with without_torch():
    import tvm

__all__ = ["tvm"]
