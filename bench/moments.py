"""What moments of fewer bits do to a loss curve: nano on biomedqa, trained as in the quickstart.

Run as ``python bench/moments.py [--seeds 2]``. For each format a bundle is compiled and trained
with each seed, by the ordinary commands; the table has the validation loss after each epoch, the
mean
over the seeds, and the bytes of the moments. The seeds' own spread is printed beside it, since a
difference below that is none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

FORMATS = ("f32", "bf16", "int8")
DATA = Path(__file__).parent.parent / "examples" / "biomedqa"


def fabric(*arguments: str | Path) -> dict:
    """Run a fabric command; return its JSON result."""
    line = [sys.executable, "-m", "bitfabric.cli", *map(str, arguments), "--json"]
    run = subprocess.run(line, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def train(folder: Path, moments: str, seed: int) -> list[float]:
    """Return the validation losses of a training, the one before it first."""
    bundle = folder / f"{moments}.fabric"
    if not bundle.is_dir():
        fabric("compile", "nano", "--moments", moments, "-o", bundle)
    adapter = folder / f"{moments}-{seed}"
    fabric(
        *("run", bundle / "module.so", "--train", DATA / "train.jsonl"),
        *("--eval-data", DATA / "validation.jsonl", "--adapter", adapter),
        *("--pack", "--batch", "1", "--learning-rate", "1e-3", "--seed", str(seed)),
    )
    lines = (adapter / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["eval_loss"] for row in map(json.loads, lines) if "eval_loss" in row]


def moment_bytes(bundle: Path) -> int:
    """Return the bytes of both moments of a bundle's adapter."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    size = manifest["adapter"]["size"]
    each = {"f32": 4 * size, "bf16": 2 * size, "int8": size + 4 * -(-size // 256)}
    return 2 * manifest["model"]["config"]["num_layers"] * each[manifest["moments"]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    seeds = range(parser.parse_args().seeds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {m: [train(folder, m, seed) for seed in seeds] for m in FORMATS}
        sizes = {m: moment_bytes(folder / f"{m}.fabric") for m in FORMATS}
    print(f"nano on biomedqa, validation loss, mean of {len(seeds)} seeds")
    print(f"  {'':18}" + "".join(f"{m:>10}" for m in FORMATS))
    print(f"  {'moments, MiB':18}" + "".join(f"{sizes[m] / 2**20:10.2f}" for m in FORMATS))
    for index in range(len(found["f32"][0])):
        label = "before" if index == 0 else f"validation {index}"
        means = [statistics.mean(curve[index] for curve in found[m]) for m in FORMATS]
        print(f"  {label:18}" + "".join(f"{mean:10.4f}" for mean in means))
    spread = {m: [curve[-1] for curve in found[m]] for m in FORMATS}
    row = "".join(f"{max(spread[m]) - min(spread[m]):10.4f}" for m in FORMATS)
    print(f"  {'spread at the end':18}{row}")


if __name__ == "__main__":
    main()
