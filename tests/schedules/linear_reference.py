"""A group of ternary projections with adapters, and the cross-entropy of a head, in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from bitfabric.models.kernels import LinearGroup
from bitfabric.models.packing import PACKINGS, pack


@dataclass
class LinearCase:
    """A group, its random tensors, and how the tokens and adapters are drawn."""

    group: LinearGroup
    tokens: int
    rank: int | None
    lora_scale: float
    separate: bool

    def __post_init__(self) -> None:
        rng = np.random.default_rng(7)
        g, t = self.group, self.tokens

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype("float32")

        self.codes = rng.integers(-1, 2, (g.rows, g.inputs)).astype("int8")
        self.scale = rng.uniform(0.5, 1.5, len(g.outputs)).astype("float32")
        self.x, self.dy = normal(t, g.inputs), normal(t, g.rows)
        self.a = normal(g.adapters, self.rank or 0, g.inputs) / np.float32(g.inputs**0.5)
        self.b = normal(self.rank or 0, g.adapted_rows)
        self.lora_input = normal(t, g.inputs) if self.separate else self.x

    @property
    def inputs(self) -> list[np.ndarray]:
        """The arguments of `bitlinear`."""
        found = [self.x, pack(self.codes, PACKINGS[self.group.packing]), self.scale]
        if self.rank is not None:
            found += [self.a, self.b]
            found += [self.lora_input] if self.separate else []
        return found

    def _adapted(self) -> list[tuple[slice, slice, int]]:
        """Return rows, columns of B and adapter of each adapted projection."""
        found, row, column = [], 0, 0
        for size, adapted in zip(self.group.outputs, self.group.adapted, strict=True):
            if adapted and self.rank is not None:
                found.append((slice(row, row + size), slice(column, column + size), len(found)))
                column += size
            row += size
        return found

    def forward(self) -> np.ndarray:
        """Return ``(T, N)``: integers exact, the rest in float64 but for the float32 scales."""
        absmax = np.maximum(np.abs(self.x).max(1), np.float32(1e-5))
        quantised = np.rint(self.x * (np.float32(127) / absmax)[:, None]).astype("int64")
        scale = np.repeat(self.scale, self.group.outputs)
        step = (absmax / np.float32(127))[:, None] * scale[None]
        y = (quantised @ self.codes.T.astype("int64")) * step.astype("float64")
        for rows, columns, s in self._adapted():
            u = self.lora_input.astype("float64") @ self.a[s].T
            y[:, rows] += self.lora_scale * u @ self.b[:, columns]
        return y

    def backward(self) -> list[np.ndarray]:
        """Return ``dx``, or ``dx, dA, dB``, or ``dx, dA, dB, dlora_input``."""
        scale = np.repeat(self.scale, self.group.outputs)
        dx = (self.dy.astype("float64") * scale) @ self.codes
        if self.rank is None:
            return [dx]
        da, db, through = np.zeros(self.a.shape), np.zeros(self.b.shape), np.zeros(dx.shape)
        for rows, columns, s in self._adapted():
            u = self.lora_scale * self.lora_input.astype("float64") @ self.a[s].T
            du = self.lora_scale * self.dy[:, rows].astype("float64") @ self.b[:, columns].T
            da[s], db[:, columns] = du.T @ self.lora_input, u.T @ self.dy[:, rows]
            through += du @ self.a[s]
        return [dx, da, db, through] if self.separate else [dx + through, da, db]


def cross_entropy(
    h: np.ndarray, weight: np.ndarray, labels: np.ndarray, factor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(T,)`` losses and the ``(T, H)`` gradient of ``factor * sum(losses)``, float64."""
    logits = h.astype("float64") @ weight.astype("float64").T
    top = logits.max(1)
    weights = np.exp(logits - top[:, None])
    total, rows, kept = weights.sum(1), np.arange(len(h)), labels >= 0
    chosen = np.maximum(labels, 0)
    loss = np.where(kept, np.log(total) + top - logits[rows, chosen], 0.0)
    gradient = weights / total[:, None]
    gradient[rows, chosen] -= 1.0
    return loss, factor * (gradient * kept[:, None]) @ weight.astype("float64")
