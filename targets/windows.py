"""How a tensor that is larger than a device's largest buffer is split into windows.

A window is a run of the tensor's memory, so the windows one after the other are the tensor. The
compiler splits parameters and workspaces this way, and the runtime what it uploads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from .errors import FabricError

VECTOR_BYTES, VECTOR_LANES = 64, 16
"""A window is a multiple of the widest vector that kernels read, so none lies in two windows."""


def item_bytes(dtype: str) -> int:
    """Return the bytes of an element of a type, such as ``"float16"``, ``"int8x4"``, ``"bool"``."""
    found = re.search(r"(\d+)(?:x(\d+))?$", dtype)
    return -(-int(found[1]) // 8) * int(found[2] or 1) if found else 1


def windows(shape: Sequence[int], dtype: str, limit: int) -> list[tuple[int, ...]] | None:
    """Return the shapes of a row-major tensor's windows; None where one buffer holds it whole.

    The tensor is cut between the slices of its outermost axis, or of the next one where a single
    slice is too large already (an axis that is cut swallows those before it).

    Parameters
    ----------
    shape : sequence of int
        Its extents.
    dtype : str
        Its element type.
    limit : int
        Bytes of the largest buffer.

    Returns
    -------
    list of tuple or None
        In the order of memory. All but the last hold the same number of elements.

    Raises
    ------
    FabricError
        If the limit is less than a vector.
    """
    size = item_bytes(dtype)
    most = limit // size
    if math.prod(shape) <= most:
        return None
    vector = max(VECTOR_LANES, VECTOR_BYTES // size)
    for axis in range(len(shape)):
        rest = tuple(shape[axis + 1 :])
        inner = math.prod(rest)
        whole = vector // math.gcd(vector, inner)
        count = most // inner // whole * whole
        if count:
            full, last = divmod(math.prod(shape[: axis + 1]), count)
            return [(n, *rest) for n in [count] * full + [last] * (last > 0)]
    raise FabricError(
        f"A buffer of {limit} bytes is less than one vector of {vector} elements of {dtype}.",
        f"Choose a target whose largest buffer is at least {vector * size} bytes.",
    )
