"""Layers that the processor reads where they lie: in the page cache, through the mapped files."""

from __future__ import annotations

import ctypes
import errno
import os

from .bundle import Bundle
from .memory_space import MemorySpace, Windows
from .weight_errors import missing, unreadable

_DONTNEED, _WILLNEED, _POPULATE_READ = 4, 3, 22
"""Of madvise(2); POPULATE_READ is Linux's since 5.14, and says what it could not read."""
_LOST = (errno.EFAULT, errno.EIO, 133)
"""What it says of pages that are not to be had; the last, EHWPOISON, has no name in Python."""


class MappedSlots:
    """The mapped files of a bundle's layers; a slot is the right to hold the pages of one.

    Parameters
    ----------
    bundle : Bundle
        An open bundle.
    memory : MemorySpace
        The processor's.
    first : int
        The first layer that is streamed.
    """

    def __init__(self, bundle: Bundle, memory: MemorySpace, first: int) -> None:
        self._bundle = bundle
        self._tensors = [
            [memory.constant(array) for array in layer.values()] for layer in bundle.layers
        ]
        self._pages = Pages()
        for layer in range(first, len(bundle.layers)):
            self._release(1 + layer)

    def load(self, slot: int, layer: int) -> None:
        """Read a layer's pages from the disk, see `layer_feed.Slots`."""
        del slot
        path, raw = self._bundle.weight_file(1 + layer)
        size = path.stat().st_size if path.is_file() else 0
        if size < raw.nbytes:
            raise missing(path.name, size, raw.nbytes)
        try:
            self._pages.read(raw.ctypes.data, raw.nbytes)
        except OSError as error:
            raise unreadable(path.name, error) from error

    def tensors(self, slot: int, layer: int) -> list[Windows]:
        """Return the tensors over the mapped file."""
        return self._tensors[layer]

    def used(self, slot: int) -> None:
        """Do nothing: the processor has finished when a function returns."""

    def drop(self, slot: int, layer: int, whole: bool) -> bool:
        """Give a layer's pages back to the system."""
        del slot, whole
        self._release(1 + layer)
        return True

    def evict(self, layer: int, tensors: list[Windows]) -> list[Windows]:
        """Give a layer's pages back; the tensors stay what they are."""
        self._release(1 + layer)
        return tensors

    def restore(self, layer: int, tensors: list[Windows]) -> list[Windows]:
        """Read a layer's pages again."""
        self.load(0, layer)
        return tensors

    def drop_ends(self) -> None:
        """Give the pages of embedding and head back to the system."""
        self._release(0)

    def _release(self, file: int) -> None:
        _, raw = self._bundle.weight_file(file)
        self._pages.release(raw.ctypes.data, raw.nbytes)


class Pages:
    """What the system is told of mapped pages; nothing where it has no such call."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
        self._advise = getattr(library, "madvise", None)
        if self._advise is not None:
            self._advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def read(self, address: int, size: int) -> None:
        """Read pages in, so that they are there when they are used.

        Raises
        ------
        OSError
            If the disk does not give them.
        """
        failed = self._call(address, size, _POPULATE_READ)
        if failed == errno.EINVAL:
            failed = self._call(address, size, _WILLNEED)
        if failed in _LOST:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def release(self, address: int, size: int) -> None:
        """Take pages out of this process; what the system caches of the file stays cached."""
        self._call(address, size, _DONTNEED)

    def _call(self, address: int, size: int, advice: int) -> int:
        """Return 0, or the number of the error."""
        if self._advise is None:
            return 0
        # A mapping begins at a page; the system rounds the end up itself.
        return 0 if self._advise(address, size, advice) == 0 else ctypes.get_errno()
