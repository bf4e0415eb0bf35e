"""Give a bundle random weights of its manifest's shapes, on a machine without the compiler.

Run as ``python bench/fill_weights.py BUNDLE``. A bundle of a random model can then be sent as its
module and manifest alone (`--strip` leaves only these), which for billions of parameters are a few
MiB, and its speed and memory measured where no compiler is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from bitfabric.targets.manifest import MANIFEST, digest, sha256


def values(spec: dict[str, Any], generator: np.random.Generator) -> np.ndarray:
    """Return random values that a tensor of a name and dtype may hold."""
    shape, dtype = tuple(spec["shape"]), np.dtype(spec["dtype"])
    if spec["name"].endswith("_norm"):
        return np.ones(shape, dtype)
    if spec["name"].endswith("_scale"):
        return np.full(shape, 0.02 if len(shape) == 1 and shape[0] < 8 else 2e-4, dtype)
    if spec["name"] == "span":  # of a layer that is not local
        return np.array([0, 1 << 30], dtype)
    if dtype == np.int32 and len(shape) == 2:  # two float16 a word
        halves = generator.standard_normal((shape[0], 2 * shape[1]), np.float32)
        return (0.02 * halves).astype(np.float16).view(np.int32)
    if dtype == np.int32:  # sixteen codes 0, 1 or 2 a word
        words = np.zeros(shape, np.uint32)
        for field in range(16):
            words |= generator.integers(0, 3, shape, np.uint32) << np.uint32(2 * field)
        return words.view(np.int32)
    if dtype == np.int8:
        return generator.integers(-127, 128, shape, np.int8)
    return (0.02 * generator.standard_normal(shape, np.float32)).astype(dtype)


def fill(folder: Path) -> None:
    """Write the weight files and seal them into the manifest."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    generator = np.random.default_rng(0)
    for entry in manifest["weights"]:
        path = folder / entry["file"]
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            for spec in entry["tensors"]:
                file.write(b"\0" * (spec["offset"] - file.tell()))
                file.write(np.ascontiguousarray(values(spec, generator)).data)
        manifest["files"][entry["file"]] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    manifest["digest"] = digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def main() -> None:
    """Fill or strip a bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--strip", action="store_true", help="remove the weight files instead")
    arguments = parser.parse_args()
    if arguments.strip:
        for file in (arguments.bundle / "weights").glob("*.bin"):
            file.unlink()
    else:
        fill(arguments.bundle)


if __name__ == "__main__":
    main()
