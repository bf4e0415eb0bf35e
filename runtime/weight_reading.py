"""Reading a bundle's weight files instead of touching their mapped pages.

A page of a mapped file that the disk no longer gives ends the process; a read that fails, or is
short, is a sentence. Large files are read by several threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from io import FileIO

import numpy as np

from .bundle import Bundle
from .weight_errors import missing, unreadable

STRIP = 4 << 20
"""Bytes that a thread reads at once."""
THREADS = 8
"""Most threads that read a file: one alone copies from the system's cache at a fraction of what
memory and a graphics processor's bus take."""


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
    strips = [
        Strip(offset + begin, into[begin : begin + STRIP], offset + len(into))
        for offset, into in parts
        for begin in range(0, len(into), STRIP)
    ]
    try:
        with path.open("rb", buffering=0) as file:
            if len(strips) == 1 or not hasattr(os, "preadv"):
                for strip in strips:
                    strip.read(file)
                return
            reading = [_threads().submit(strip.read, file) for strip in strips]
            # All end before the file is closed, whatever one of them meets.
            wait(reading)
            for each in reading:
                each.result()
    except _Short as short:
        raise missing(path.name, short.found, short.expected) from None
    except OSError as error:
        raise unreadable(path.name, error) from error


@dataclass(frozen=True)
class Strip:
    """A part of a file that one thread reads.

    Attributes
    ----------
    offset : int
        Where it begins in the file.
    into : np.ndarray
        What it fills, uint8.
    end : int
        Where the part of the file that it belongs to ends.
    """

    offset: int
    into: np.ndarray
    end: int

    def read(self, file: FileIO) -> None:
        """Fill the array; no other thread's place in the file is moved where the system can."""
        done = 0
        while done < len(self.into):
            rest = self.into[done:].data
            if hasattr(os, "preadv"):
                count = os.preadv(file.fileno(), [rest], self.offset + done)
            else:
                file.seek(self.offset + done)
                count = file.readinto(rest)
            if not count:
                raise _Short(self.offset + done, self.end)
            done += count


class _Short(Exception):
    """A file that ends early."""

    def __init__(self, found: int, expected: int) -> None:
        super().__init__(found, expected)
        self.found, self.expected = found, expected


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), thread_name_prefix="weights")
