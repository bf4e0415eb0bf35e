"""Runs the launches of a bundle that `launch_plan.py` compiled, on the processor's memory.

Each is written down: the kernel, its extents, its arguments and the bytes in its buffers. Bytes
that nothing has written are not compared. Which they are is found out: each launch runs twice,
with other bytes in their place, and what it leaves alike is what it has written.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .launch_trace import digest

ENTERED, LAUNCHED = "bitfabric.test.entered", "bitfabric.test.launched"
"""Who is told that a function begins, and of each launch."""
FILLS = 0xA5, 0x5A
"""What stands in bytes that nothing has written, in one run and in the other."""


@dataclass
class Bytes:
    """A buffer as an argument: its contents before the launch and after it.

    Attributes
    ----------
    place : int
        Its address, which tells two buffers of a launch apart.
    size : int
        Bytes.
    before, after : str
        Names of files: the contents, and beside them which bytes are known.
    """

    place: int
    size: int
    before: str = ""
    after: str = ""


@dataclass
class Launch:
    """A launch: what is run, in how many groups of how many threads, and on what.

    Attributes
    ----------
    kernel : str
        Its name.
    extents : dict
        By ``"blockIdx.x"`` and so on.
    arguments : list of Bytes or number
        In the kernel's order.
    """

    kernel: str
    extents: dict[str, int]
    arguments: list[Any]


class Recorder:
    """Runs the launches of a bundle of :func:`compile_plan`, and writes them down.

    Parameters
    ----------
    folder : Path
        For the launches and the contents of their buffers.
    execute : callable
        ``execute(kernel, arguments, extents)`` runs a kernel; arrays of bytes among the arguments
        are its buffers, to be changed in place.
    """

    def __init__(
        self, folder: Path, execute: Callable[[str, list[Any], dict[str, int]], None]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._execute = folder, execute
        self._file = (folder / "launches.jsonl").open("w")
        self._unknown: dict[int, np.ndarray] = {}
        """By address: which bytes nothing has written. All others are known."""
        self._fresh: set[int] = set()
        """Buffers of a function's own that have been launched with since it was entered."""

    def install(self) -> None:
        """Let this process's launches come here, and hear of all memory that is given out."""
        from bitfabric.runtime.memory_space import HostBlock, HostMemory
        from bitfabric.targets.ffi import tvm_ffi as runtime

        runtime.register_global_func(ENTERED, self._entered, override=True)
        runtime.register_global_func(LAUNCHED, self._launched, override=True)
        allocate = runtime.get_global_func("vm.builtin.alloc_tensor")
        empty, constant = HostMemory.empty, HostMemory.constant
        make, write = HostBlock.__init__, HostBlock.write

        def given_out(*arguments: Any) -> Any:
            return self._born(allocate(*arguments))

        def made(block: HostBlock, array: np.ndarray) -> None:
            self._unknown.pop(array.ctypes.data, None)
            make(block, array)

        def written(block: HostBlock, values: Any) -> None:
            self._unknown.pop(block.read().ctypes.data, None)
            write(block, values)

        def copied(memory: HostMemory, array: np.ndarray) -> Any:
            self._unknown.pop(array.ctypes.data, None)
            return constant(memory, array)

        runtime.register_global_func("vm.builtin.alloc_tensor", given_out, override=True)
        HostMemory.empty = lambda *a, **k: self._born(empty(*a, **k))  # type: ignore[method-assign]
        HostMemory.constant = copied  # type: ignore[method-assign]
        HostBlock.__init__, HostBlock.write = made, written  # type: ignore[method-assign]

    def _born(self, tensor: Any) -> Any:
        array = np.from_dlpack(tensor)
        self._unknown[array.ctypes.data] = np.ones(array.nbytes, bool)
        return tensor

    def _entered(self, _name: str) -> None:
        self._fresh.clear()

    def _launched(self, kernel: str, form: str, tags: str, *values: Any) -> None:
        rest, names = list(values), tags.split(",")
        arguments: list[Any] = []
        for kind in form:
            value = rest.pop(0)
            if kind == "s":
                arguments.append(value)
                continue
            size = int(rest.pop(0))
            place = int(getattr(value, "value", value) or 0)
            if kind == "o" and place not in self._fresh:
                self._unknown[place] = np.ones(size, bool)
                self._fresh.add(place)
            arguments.append(Bytes(place, size))
        extents = {name: int(value) for name, value in zip(names, rest, strict=True)}
        launch = Launch(kernel, extents, arguments)
        if all(extents.values()):
            self._run(launch)
            self._file.write(json.dumps(asdict(launch)) + "\n")
            self._file.flush()

    def _run(self, launch: Launch) -> None:
        """Run a launch, and complete what is known of its buffers."""
        buffers = [each for each in launch.arguments if isinstance(each, Bytes)]
        memory = [
            np.frombuffer((ctypes.c_char * each.size).from_address(each.place), np.uint8)
            for each in buffers
        ]
        unknown = [self._mask(each) for each in buffers]
        for each, array, mask in zip(buffers, memory, unknown, strict=True):
            each.before = self._kept(array, mask)
        results = []
        for fill in FILLS if any(mask.any() for mask in unknown) else FILLS[:1]:
            copies = [array.copy() for array in memory]
            for copy, mask in zip(copies, unknown, strict=True):
                copy[mask] = fill
            left = iter(copies)
            given = [next(left) if isinstance(a, Bytes) else a for a in launch.arguments]
            self._execute(launch.kernel, given, launch.extents)
            results.append(copies)
        for i, (each, array) in enumerate(zip(buffers, memory, strict=True)):
            mask = _words(results[0][i] != results[-1][i])
            np.copyto(array, results[0][i], where=array != results[0][i])
            if mask.any() or each.place in self._unknown:
                self._unknown[each.place] = mask
            each.after = self._kept(array, mask)

    def _mask(self, buffer: Bytes) -> np.ndarray:
        """Return which bytes of a buffer nothing has written."""
        known = self._unknown.get(buffer.place)
        mask = np.zeros(buffer.size, bool)
        if known is not None:
            mask[: known.size] = known[: buffer.size]
        return mask

    def _kept(self, array: np.ndarray, mask: np.ndarray) -> str:
        """Write contents and mask to a file, once, and return its name."""
        name = digest(array, ~mask)
        path = self._folder / name
        if not path.exists():
            content = np.where(mask, np.uint8(0), array).tobytes()
            path.write_bytes(content + (np.packbits(mask).tobytes() if mask.any() else b""))
        return name


def _words(mask: np.ndarray) -> np.ndarray:
    """Return a mask of bytes in which a word of four is marked where one of its bytes is.

    A number that is not known may be another with some of the same bytes.
    """
    whole = np.zeros(-(-mask.size // 4) * 4, bool)
    whole[: mask.size] = mask
    return whole.reshape(-1, 4).any(1).repeat(4)[: mask.size]
