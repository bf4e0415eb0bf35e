"""Reading a bundle's weight files instead of touching their mapped pages.

A page of a mapped file that the disk no longer gives ends the process; a read that fails, or is
short, is a sentence.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .bundle import Bundle
from .weight_errors import missing, unreadable


def read_file(bundle: Bundle, index: int, into: np.ndarray) -> None:
    """Fill an array with the first bytes of a weight file.

    Parameters
    ----------
    bundle : Bundle
        An open bundle.
    index : int
        Of the file: 0 for the ends', then the layers'.
    into : np.ndarray
        uint8, one axis.

    Raises
    ------
    FabricError
        If the file is shorter, gone, or not readable.
    """
    read_parts(bundle, index, [(0, into)])


def read_parts(bundle: Bundle, index: int, parts: Iterable[tuple[int, np.ndarray]]) -> None:
    """Fill arrays with a weight file's bytes from given offsets on, see `read_file`."""
    path, _ = bundle.weight_file(index)
    try:
        with path.open("rb", buffering=0) as file:
            for offset, into in parts:
                file.seek(offset)
                done = 0
                while done < len(into) and (count := file.readinto(into[done:].data)):
                    done += count
                if done < len(into):
                    raise missing(path.name, offset + done, offset + len(into))
    except OSError as error:
        raise unreadable(path.name, error) from error
