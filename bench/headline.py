"""The README's figures: LoRA training, prompts and writing of 125M and 1B, by `fabric bench`.

Run as ``python bench/headline.py [--model 125M --model 1B] [--target cpu] [--against PROGRAM]
[--folder bundles] [--rounds 7] [--threads N] -o bench/results/headline-cpu-avx512.json``. A bundle
that the folder has already is taken as it is, so that the runtime alone will do. The file is
written anew after each work; `readme_tables.py` makes the README's tables of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CONTEXT = 128
WORKS = {"train": ["--train"], "prefill": ["--prefill", "128"], "decode": ["--decode", "48"]}


def fabric(*arguments: str) -> dict[str, Any]:
    """Run a command, whose words pass through, and return what it printed as JSON."""
    command = [sys.executable, "-m", "bitfabric.cli", *arguments, "--json"]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if run.returncode:
        sys.exit(run.returncode)
    return json.loads(run.stdout.splitlines()[-1])


def compiled(model: str, folder: Path, target: str = "cpu") -> Path:
    """Compile a random model of a published size, unless the folder has it."""
    path = folder / f"{model}.fabric"
    if not (path / "manifest.json").is_file():
        options = ["--target", target, "--context", str(CONTEXT), "-o", str(path)]
        fabric("compile", f"random:{model}", *options)
    return path


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="125M and 1B by default")
    parser.add_argument("--work", choices=WORKS, action="append", help="all by default")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path("bundles"))
    parser.add_argument("--against")
    parser.add_argument("--rounds", default="7")
    parser.add_argument("--threads")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    options = ["--rounds", arguments.rounds, "--context", str(CONTEXT)]
    for name in ("against", "threads"):
        if value := getattr(arguments, name):
            options += [f"--{name}", value]
    found = []
    for model in arguments.model or ["125M", "1B"]:
        bundle = compiled(model, arguments.folder, arguments.target)
        for work in arguments.work or WORKS:
            found.append(fabric("bench", str(bundle), *WORKS[work], *options))
            arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
