"""What this process has taken of a CUDA device's memory, and the bound on it.

TVM takes memory from CUDA directly. ``runtime/native/cuda.cc`` stands between the two: it counts,
and refuses what would exceed a budget before the driver is asked. It must be loaded before CUDA's
own library. Where it can't be built or loaded, nothing is refused beforehand, and what is held is
what the driver misses.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_NUMBERS = 4


class Ledger:
    """The library's functions.

    Parameters
    ----------
    path : pathlib.Path
        The library, made from ``runtime/native/cuda.cc``.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        self._library.bitfabric_cuda_budget.argtypes = (ctypes.c_int, ctypes.c_uint64)

    def open(self, cudart: ctypes.CDLL) -> None:
        """Hand calls on to CUDA's runtime library, which was loaded later."""
        names = ("cudaMalloc", "cudaFree", "cudaGetDevice")
        places = [ctypes.cast(getattr(cudart, name), ctypes.c_void_p) for name in names]
        self._library.bitfabric_cuda_open(*places)

    def budget(self, index: int, size: int) -> None:
        """Refuse from now on what would take more than so many bytes of a device at once."""
        self._library.bitfabric_cuda_budget(index, size)

    def reset_peak(self, index: int) -> None:
        """Let the peak be what is held now."""
        self._library.bitfabric_cuda_reset_peak(index)

    def usage(self, index: int) -> dict[str, int]:
        """Return ``in_use``, ``peak``, ``budget`` and ``refused``, bytes.

        The last is the size of a request that was refused since the last call, or 0.
        """
        values = (ctypes.c_uint64 * _NUMBERS)()
        self._library.bitfabric_cuda_usage(index, values)
        return dict(zip(("in_use", "peak", "budget", "refused"), map(int, values), strict=True))


def is_possible() -> bool:
    """Return whether a library's functions can stand before another's here: with ELF they do."""
    return sys.platform == "linux"
