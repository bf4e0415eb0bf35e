"""Each kernel of a bundle on its device, beside what the processor computes without a schedule.

``python -m bitfabric.cli.kernel_probe BUNDLE EXPECTED`` runs the kernels on what the folder
EXPECTED has for them, in a process that a bad driver may take down, and prints a line of JSON for
each as it goes: ``{"name", "kernel", "shapes", "error", "allowed", "passed"}``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.backends import load_backend
from ..runtime.bundle import Bundle, open_bundle
from ..runtime.device import chosen_device
from ..runtime.kernel_bench import filled
from ..runtime.library import load_runtime
from ..runtime.memory_space import DeviceMemory, HostMemory, MemorySpace
from ..targets.ffi import tvm_ffi

SEED = 0
ALLOWED, ALLOWED_ADJOINT = 2e-3, 5e-3
"""The root of the mean square of the differences, by that of the values. Another order of a sum may
round an activation to the next of 255 levels, and adjoints multiply 16-bit floats."""
ADJOINTS = re.compile(r"vjp|head|attention")
LIST = "kernels.json"
LIBRARY = "library"
"""The kind of the module of a bundle that has the functions which launch kernels."""


def write_expected(folder: Path, checks: Sequence[Any]) -> None:
    """Write what kernels are tried with and what they must give, for any process to read.

    Parameters
    ----------
    folder : Path
        An empty folder.
    checks : sequence of compiler.kernel_check.KernelCheck
        The kernels.
    """
    memory, told = HostMemory(), []
    for index, check in enumerate(checks):
        inputs = _inputs(check.arguments, index)
        blocks = [memory.zeros(array.shape, str(array.dtype)) for array in inputs]
        for block, array in zip(blocks, inputs, strict=True):
            block.write(array)
        check.reference(*(block.tensor for block in blocks))
        found = {str(i): block.read() for i, block in enumerate(blocks)}
        changed = {i: a for i, a in found.items() if not _same(a, inputs[int(i)])}
        np.savez(folder / f"{index}.npz", **changed)  # type: ignore[arg-type]
        told.append({"name": check.name, "kernel": check.kernel, "arguments": check.arguments})
    (folder / LIST).write_text(json.dumps(told), encoding="utf-8")


def main(bundle: str, expected: str) -> None:
    """Do what the module's head says."""
    opened, folder = open_bundle(Path(bundle)), Path(expected)
    memory, library = _opened(opened)
    for index, check in enumerate(json.loads((folder / LIST).read_text(encoding="utf-8"))):
        inputs = _inputs(check["arguments"], index)
        with np.load(folder / f"{index}.npz") as results:
            right = [results.get(str(i), a) for i, a in enumerate(inputs)]
        error = _tried(memory, library[check["name"]], inputs, right)
        print(json.dumps(_verdict(check, error)), flush=True)


def _opened(bundle: Bundle) -> tuple[MemorySpace, Any]:
    """Return the memory of a bundle's device, and the module whose functions launch its kernels."""
    load_runtime()
    memory: MemorySpace = HostMemory()
    if bundle.kind != "cpu":
        load_backend(bundle.kind)
        memory = DeviceMemory(bundle.kind, chosen_device(bundle))
    module = tvm_ffi.load_module(str(bundle.module_path))
    while module.kind != LIBRARY:
        module = module.imports[0]
    return memory, module


def _inputs(arguments: Sequence[Mapping[str, Any]], index: int) -> list[np.ndarray]:
    rng = np.random.default_rng((SEED, index))
    return [filled(argument, rng) for argument in arguments]


def _tried(
    memory: MemorySpace, kernel: Any, inputs: list[np.ndarray], right: list[np.ndarray]
) -> float:
    """Return the largest error of what a kernel leaves in its arguments."""
    blocks = [memory.zeros(array.shape, str(array.dtype)) for array in inputs]
    for block, array in zip(blocks, inputs, strict=True):
        block.write(array)
    kernel(*(block.tensor for block in blocks))
    return max(_error(b.read(), expected) for b, expected in zip(blocks, right, strict=True))


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return how far values are off, relative to their size; integers must be the same."""
    if found.dtype.kind != "f":
        return 0.0 if np.array_equal(found, expected) else float("inf")
    a, b = found.astype(np.float64), expected.astype(np.float64)
    known = np.isfinite(b)
    if not np.array_equal(known, np.isfinite(a)):
        return float("inf")
    off, size = (a - b)[known], b[known]
    return float(np.linalg.norm(off) / max(np.linalg.norm(size), 1e-30)) if off.any() else 0.0


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.tobytes() == other.tobytes()


def _verdict(check: Mapping[str, Any], error: float) -> dict[str, Any]:
    allowed = ALLOWED_ADJOINT if ADJOINTS.search(check["kernel"]) else ALLOWED
    shape = [argument["shape"] for argument in (check["arguments"][0], check["arguments"][-1])]
    return {
        "name": check["name"],
        "kernel": check["kernel"],
        "shapes": " -> ".join("x".join(map(str, extents)) for extents in shape),
        "error": f"{error:.2e}",
        "allowed": allowed,
        "passed": error <= allowed,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
