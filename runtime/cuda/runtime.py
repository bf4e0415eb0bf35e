"""CUDA's runtime functions, whose failures are exceptions."""

from __future__ import annotations

import ctypes
from typing import Any

from .libraries import cudart


class Runtime:
    """CUDA's runtime functions, each of which returns 0 where it succeeds."""

    def __init__(self) -> None:
        self._library = cudart()
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function.

        Raises
        ------
        RuntimeError
            With CUDA's words for what went wrong.
        """
        status = self.status(name, *arguments)
        if status:
            said = self._library.cudaGetErrorString(status).decode()
            raise RuntimeError(f"CUDA: {said} ({name})")

    def status(self, name: str, *arguments: Any) -> int:
        """Call a function that may fail, and return its status."""
        status = int(getattr(self._library, name)(*arguments))
        if status:
            # The next call would return it again.
            self._library.cudaGetLastError()
        return status

    def free(self, name: str, handle: ctypes.c_void_p) -> None:
        """Give something back, which at the end of a process may be gone already."""
        getattr(self._library, name)(handle)
