"""Laying documents into rows of the context's length."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from ..batch import IGNORE, Batch
from .documents import Corpus

Row = tuple[int, ...]


def one_per_row(corpus: Corpus) -> list[Row]:
    """Give every document a row of its own, in the order of the file."""
    return [(document,) for document in range(len(corpus))]


def pack(lengths: Sequence[int], context: int) -> list[Row]:
    """Lay whole documents into as few rows as best-fit decreasing finds.

    The longest comes first, each into the fullest row that still has room (Johnson 1974: at most
    11/9 of the fewest rows possible, plus one). Nothing is random and ties go to the earlier, so
    the same data always gives the same rows.

    Parameters
    ----------
    lengths : sequence of int
        Positions that each document takes, 1 to `context`.
    context : int
        Positions of a row.

    Returns
    -------
    list of tuple of int
        The documents of each row, both in the order of the file.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for document in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = int(lengths[document])
        place = bisect_left(room, (length, -1))
        if place == len(room):
            rows.append([document])
            insort(room, (context - length, len(rows) - 1))
        else:
            left, row = room.pop(place)
            rows[row].append(document)
            insort(room, (left - length, row))
    return sorted(tuple(sorted(row)) for row in rows)


def fill(batch: Batch, index: int, corpus: Corpus, row: Row) -> None:
    """Write the documents of `row` into row `index` of a batch of padding.

    A document's labels are its own tokens, one ahead, and -100 where nothing is learned; its last
    token is a label only. So no label ever belongs to the document that stands next in the row.
    """
    at = 0
    for document in row:
        begin, end = int(corpus.bounds[document]), int(corpus.bounds[document + 1])
        stop = at + end - begin - 1
        following = corpus.tokens[begin + 1 : end]
        batch.tokens[index, at:stop] = corpus.tokens[begin : end - 1]
        batch.labels[index, at:stop] = np.where(corpus.learned[begin + 1 : end], following, IGNORE)
        batch.starts[index, at:stop] = at
        at = stop
