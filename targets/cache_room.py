"""The size of a cache of keys and values: the memory plan and the engine agree on it."""

from __future__ import annotations

import math

LANES = 16
"""A capacity is a multiple of it: kernels read whole vectors of positions."""
CAPACITY = 2048
"""Tokens that fit into one text, where nobody says and the model attends over as many."""
PAGE = 256
"""Tokens by which a cache grows."""


def whole_vectors(tokens: int) -> int:
    """Return the positions of a cache for so many tokens that never grows.

    They are an odd number of vectors: rows a power of two apart would share the same cache sets.
    """
    return LANES * (math.ceil(tokens / LANES) | 1)


def cache_room(tokens: int, most: int) -> int:
    """Return the positions of a cache that holds so many tokens, in whole pages.

    Parameters
    ----------
    tokens : int
        What it holds, at least.
    most : int
        Positions beyond which it never grows, of :func:`whole_vectors`.
    """
    return min(whole_vectors(max(math.ceil(tokens / PAGE), 1) * PAGE), most)
