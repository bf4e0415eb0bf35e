"""The inputs of the layers, from the forward pass to their adjoints: in memory, or outside of it.

Outside means the host's memory where a device computes. Where the processor does, it is a file
without a name, whose pages the system may write to the disk and forget.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from ..targets import FabricError
from .blocks import aligned
from .memory_space import DeviceMemory, MemorySpace, Tensor


class Store(Protocol):
    """Where inputs are that are not in memory."""

    def put(self, layer: int, tensor: Tensor) -> None:
        """Copy a layer's input there."""
        ...

    def get(self, layer: int) -> Tensor:
        """Return a copy of it."""
        ...


class LayerInputs:
    """The inputs of the layers of one micro-batch.

    Parameters
    ----------
    memory : MemorySpace
        Where the layers compute.
    outside : int
        The first so many layers' inputs are outside of it.
    folder : pathlib.Path
        For a file, where there can be one.
    """

    def __init__(self, memory: MemorySpace, outside: int, folder: Path) -> None:
        self._outside = outside
        self._held: dict[int, Tensor] = {}
        device = isinstance(memory, DeviceMemory)
        self._store: Store = _HostStore(memory) if device else _FileStore(memory, folder)

    def keep(self, layer: int, tensor: Tensor) -> None:
        """Keep a layer's input, ``(T, H)`` float32.

        Raises
        ------
        FabricError
            If it can't be written.
        """
        if layer < self._outside:
            self._store.put(layer, tensor)
        else:
            self._held[layer] = tensor

    def __getitem__(self, layer: int) -> Tensor:
        """Return a layer's input, or a copy of it.

        Raises
        ------
        FabricError
            If it can't be read.
        """
        return self._held[layer] if layer in self._held else self._store.get(layer)

    def drop(self, layer: int) -> None:
        """Forget a layer's input; what is outside is written over by the next step's."""
        self._held.pop(layer, None)

    def clear(self) -> None:
        """Forget all inputs in memory."""
        self._held.clear()


class _HostStore:
    """The host's memory."""

    def __init__(self, memory: MemorySpace) -> None:
        self._memory = memory
        self._arrays: dict[int, np.ndarray] = {}

    def put(self, layer: int, tensor: Tensor) -> None:
        self._arrays[layer] = self._memory.read(tensor)

    def get(self, layer: int) -> Tensor:
        tensor = self._memory.constant(self._arrays[layer])
        assert not isinstance(tensor, list)
        return tensor


class _FileStore:
    """A file in the bundle's folder, or where the system has its temporary ones."""

    def __init__(self, memory: MemorySpace, folder: Path) -> None:
        self._memory, self._folder = memory, folder
        self._opened: IO[bytes] | None = None
        self._shape: tuple[int, ...] = ()

    def put(self, layer: int, tensor: Tensor) -> None:
        values = self._memory.read(tensor)
        self._shape = values.shape
        try:
            file = self._file()
            file.seek(layer * values.nbytes)
            done, data = 0, values.reshape(-1).view(np.uint8)
            while done < len(data):
                done += file.write(data[done:].data)
        except OSError as error:
            raise FabricError(
                f"The input of a layer can't be written: {(error.strerror or str(error)).lower()}.",
                "Make room on the bundle's disk, or compile for a larger --memory-budget.",
            ) from error

    def get(self, layer: int) -> Tensor:
        values = aligned(self._shape)
        done, data = 0, values.reshape(-1).view(np.uint8)
        try:
            file = self._file()
            file.seek(layer * values.nbytes)
            while done < len(data) and (count := file.readinto(data[done:].data)):  # type: ignore[attr-defined]
                done += count
            reason = "the file is cut short"
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
        if done < len(data):
            raise FabricError(
                f"The input of a layer can't be read again: {reason}.",
                "Bring the disk back and continue with --resume: the last checkpoint is whole.",
            )
        tensor = self._memory.constant(values)
        assert not isinstance(tensor, list)
        return tensor

    def _file(self) -> IO[bytes]:
        if self._opened is None:
            try:
                self._opened = tempfile.TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115
            except OSError:
                self._opened = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        return self._opened
