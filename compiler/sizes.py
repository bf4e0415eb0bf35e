"""How many bytes tensors take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..models.graph import TensorSpec
from ..targets.windows import item_bytes


def tensor_bytes(specs: Iterable[TensorSpec]) -> int:
    """Return the bytes of tensors."""
    total = 0
    for spec in specs:
        size = item_bytes(spec.dtype)
        for extent in spec.shape:
            size *= extent
        total += size
    return total


def type_bytes(kind: Any) -> int:
    """Return the bytes of a tensor of a static type."""
    shape = tuple(int(extent) for extent in kind.shape)
    return tensor_bytes([TensorSpec("", shape, str(kind.dtype))])
