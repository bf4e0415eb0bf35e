"""Attention over packed rows and over a cache, in float64 numpy, and the adjoint of the first."""

from __future__ import annotations

import numpy as np


def rope_table(positions: int, head_dim: int, theta: float = 10000.0) -> np.ndarray:
    """Return the ``(positions, D)`` cosines and sines."""
    frequency = theta ** (-2.0 * np.arange(head_dim // 2) / head_dim)
    angle = np.arange(positions)[:, None] * frequency
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1)


def rotate(x: np.ndarray, table: np.ndarray, back: bool = False) -> np.ndarray:
    """Rotate ``(..., T, heads, D)`` by the ``(..., T, D)`` table rows of their positions."""
    half = x.shape[-1] // 2
    cosine, sine = table[..., None, :half], table[..., None, half:]
    if back:
        sine = -sine
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=-1)


class PackedAttention:
    """Attention of ``(B C, (Hq + 2 Hkv) D)`` inputs; all of C by C at once."""

    def __init__(
        self, qkv: np.ndarray, starts: np.ndarray, rope: np.ndarray, heads: int, kv_heads: int
    ) -> None:
        self.batch, self.context = starts.shape
        self.heads, self.kv_heads, self.group = heads, kv_heads, heads // kv_heads
        self.head_dim = rope.shape[1]
        x = qkv.astype("float64").reshape(self.batch, self.context, -1, self.head_dim)
        self.table = rope.astype("float64")[np.arange(self.context) - starts]
        self.query = rotate(x[:, :, :heads], self.table)
        key = rotate(x[:, :, heads : heads + kv_heads], self.table)
        self.key = np.repeat(key, self.group, axis=2)
        self.value = np.repeat(x[:, :, heads + kv_heads :], self.group, axis=2)
        scores = np.einsum("bihd,bjhd->bhij", self.query, self.key) / np.sqrt(self.head_dim)
        j, i = np.arange(self.context)[None, None], np.arange(self.context)[None, :, None]
        seen = (j <= i) & (j >= starts[:, :, None])
        scores = np.where(seen[:, None], scores, -np.inf)
        weight = np.exp(scores - scores.max(-1, keepdims=True))
        self.weight = weight / weight.sum(-1, keepdims=True)

    def forward(self) -> np.ndarray:
        """Return ``(B C, Hq D)``."""
        mixed = np.einsum("bhij,bjhd->bihd", self.weight, self.value)
        return mixed.reshape(self.batch * self.context, -1)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        """Return the adjoint of qkv."""
        dy = dy.astype("float64").reshape(self.batch, self.context, self.heads, self.head_dim)
        dweight = np.einsum("bihd,bjhd->bhij", dy, self.value)
        mean = (self.weight * dweight).sum(-1, keepdims=True)
        dscore = self.weight * (dweight - mean) / np.sqrt(self.head_dim)
        dquery = rotate(np.einsum("bhij,bjhd->bihd", dscore, self.key), self.table, back=True)
        dkey = np.einsum("bhij,bihd->bjhd", dscore, self.query)
        dvalue = np.einsum("bhij,bihd->bjhd", self.weight, dy)
        shape = (self.batch, self.context, self.kv_heads, self.group, self.head_dim)
        dkey, dvalue = dkey.reshape(shape).sum(3), dvalue.reshape(shape).sum(3)
        dkey = rotate(dkey, self.table, back=True)
        joined = np.concatenate([dquery, dkey, dvalue], axis=2)
        return joined.reshape(self.batch * self.context, -1)


class Cache:
    """Keys ``(S, Hkv, D, M)`` and values ``(S, Hkv, M, D)``, NaN where nothing was written."""

    def __init__(self, sequences: int, kv_heads: int, head_dim: int, capacity: int) -> None:
        self.keys = np.full((sequences, kv_heads, head_dim, capacity), np.nan)
        self.values = np.full((sequences, kv_heads, capacity, head_dim), np.nan)

    def append(
        self, qkv: np.ndarray, sequence: np.ndarray, position: np.ndarray, rope: np.ndarray
    ) -> None:
        """Write the keys, rotated, and values of new tokens."""
        kv_heads, head_dim = self.keys.shape[1:3]
        x = qkv.astype("float64").reshape(len(qkv), qkv.shape[1] // head_dim, head_dim)
        key = rotate(x[:, -2 * kv_heads : -kv_heads], rope.astype("float64")[position])
        for t, (s, p) in enumerate(zip(sequence, position, strict=True)):
            self.keys[s, :, :, p] = key[t]
            self.values[s, :, p] = x[t, -kv_heads:]

    def attend(
        self, qkv: np.ndarray, sequence: np.ndarray, position: np.ndarray, rope: np.ndarray
    ) -> np.ndarray:
        """Return the ``(n, Hq D)`` attention of tokens that were appended."""
        kv_heads, head_dim = self.keys.shape[1:3]
        x = qkv.astype("float64").reshape(len(qkv), qkv.shape[1] // head_dim, head_dim)
        query = rotate(x[:, : -2 * kv_heads], rope.astype("float64")[position])
        group = query.shape[1] // kv_heads
        out = np.empty_like(query)
        for t, (s, p) in enumerate(zip(sequence, position, strict=True)):
            for h in range(query.shape[1]):
                key = self.keys[s, h // group, :, : p + 1]
                scores = query[t, h] @ key / np.sqrt(head_dim)
                weight = np.exp(scores - scores.max())
                out[t, h] = weight / weight.sum() @ self.values[s, h // group, : p + 1]
        return out.reshape(len(qkv), -1)
