"""Token streams: reading, shuffling into training rows, cutting into windows for measuring."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

BOS = 1


def read_tokens(path: Path) -> np.ndarray:
    """Read one xz file of uint16 token ids; every document starts with BOS."""
    with lzma.open(path) as file:
        return np.frombuffer(file.read(), dtype=np.uint16)


class Rows:
    """Endless rows of packed documents, in a new order of documents and rows every epoch.

    Parameters
    ----------
    stream : np.ndarray
        uint16 token ids.
    length : int
        Tokens of a row.
    batch : int
        Rows of a step.
    """

    def __init__(self, stream: np.ndarray, length: int, batch: int, device: str, seed: int) -> None:
        self.tokens = torch.from_numpy(stream.astype(np.int32)).to(device)
        starts = torch.nonzero(self.tokens == BOS).flatten()
        ends = torch.cat([starts[1:], torch.tensor([len(stream)], device=device)])
        self.starts, self.lengths = starts, ends - starts
        self.length, self.batch = length, batch
        self.random = torch.Generator(device=device).manual_seed(seed)
        self.epochs = 0

    def _shuffled(self) -> Tensor:
        """The stream with its documents in a new order."""
        device = self.tokens.device
        order = torch.randperm(len(self.starts), generator=self.random, device=device)
        lengths = self.lengths[order]
        offsets = self.starts[order] - (lengths.cumsum(0) - lengths)
        where = torch.arange(len(self.tokens), device=device)
        return self.tokens[where + torch.repeat_interleave(offsets, lengths)].long()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (tokens, labels, documents), each int64 [batch, length]."""
        while True:
            self.epochs += 1
            stream = self._shuffled()
            rows = (len(stream) - 1) // self.length
            span = torch.arange(self.length + 1, device=stream.device)
            order = torch.randperm(rows, generator=self.random, device=stream.device)
            for start in range(0, rows - self.batch + 1, self.batch):
                index = order[start : start + self.batch, None] * self.length + span
                window = stream[index]
                tokens, labels = window[:, :-1].contiguous(), window[:, 1:].contiguous()
                # No document tells how the next one begins.
                labels[labels == BOS] = -100
                yield tokens, labels, (tokens == BOS).cumsum(1)


def windows(stream: np.ndarray, length: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Cut every document into windows of `length`; each token but BOS is predicted once.

    Yields (tokens, labels, documents), each int64 [rows <= 32, length], padded with token 0 that
    has no loss and, standing behind, is seen by no token.
    """
    starts = [*np.flatnonzero(stream == BOS), len(stream)]
    pieces = [
        stream[first : min(first + length + 1, end)].astype(np.int64)
        for begin, end in pairwise(starts)
        for first in range(begin, end - 1, length)
    ]
    for start in range(0, len(pieces), 32):
        group = pieces[start : start + 32]
        tokens = torch.zeros(len(group), length, dtype=torch.int64)
        labels = torch.full((len(group), length), -100)
        for row, piece in enumerate(group):
            tokens[row, : len(piece) - 1] = torch.from_numpy(piece[:-1])
            labels[row, : len(piece) - 1] = torch.from_numpy(piece[1:])
        yield tokens, labels, torch.zeros_like(tokens)
