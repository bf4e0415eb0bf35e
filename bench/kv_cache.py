"""What smaller caches of keys and values do to a text, and that growing one changes nothing.

Run as ``python bench/kv_cache.py --compile FOLDER [--target cpu …]``, then, there or on another
machine with the runtime alone, ``python bench/kv_cache.py FOLDER``. For each target and format the
table has

- the cache's own size, the peak of the device's memory, 0 where a processor computes, and what the
  bundle's plan promises of it;
- tokens a second, and whether a cache that grew by pages gave the bits of one allocated whole;
- against the float32 cache of the same target: the divergence (KL, in nats) of the distributions of
  each next token, their mean and largest, how often the likeliest token is the same, and how many
  tokens its own greedy text has in common with that of float32.

Exits with 1 where a grown cache differs from a whole one, or takes more than was planned.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FORMATS = ("f32", "f16", "int8")
PROMPT = "Q: Does aspirin prevent strokes?\nA:"
WRITTEN, CONTEXT = 600, 640
"""Tokens that are written, and that the memory plan is for."""


def compile_all(folder: Path, targets: list[str]) -> None:
    """Compile nano for each target with each cache."""
    for target in targets:
        for form in FORMATS:
            name = folder / f"{target.replace(':', '-')}-{form}.fabric"
            line = [sys.executable, "-m", "bitfabric.cli", "compile", "nano", "-o", str(name)]
            line += ["--target", target, "--kv-cache", form, "--context", str(CONTEXT)]
            subprocess.run(line, check=True)


def greedy(engine, prompt: list[int], given: list[int] | None = None):
    """Write so many tokens, the likeliest or those given; return them and the logits of each."""
    logits, tokens = [engine.prefill(prompt).copy()], []
    for index in range(WRITTEN):
        tokens.append(int(np.argmax(logits[-1])) if given is None else given[index])
        if index + 1 < WRITTEN:
            logits.append(engine.decode(tokens[-1]).copy())
    return tokens, np.array(logits)


def measure(path: Path, reference: Path, out: Path) -> dict:
    """Write with a bundle; `reference` has the tokens to be scored, or is made of this bundle's."""
    from bitfabric.runtime import InferenceEngine, open_bundle
    from bitfabric.runtime.tokenizer import load_tokenizer
    from bitfabric.targets import cache_room

    bundle = open_bundle(path)
    prompt = load_tokenizer(bundle).encode_prompt(PROMPT)
    capacity = len(prompt) + WRITTEN
    grown = InferenceEngine(bundle, capacity=capacity)
    rooms = [grown.room]
    tokens, logits = greedy(grown, prompt)
    rooms.append(grown.room)
    peak = grown.device_memory_mib
    grown.reset()
    begin = time.perf_counter()
    # The second time kernels are compiled, and the room is there.
    greedy(grown, prompt, tokens)
    seconds = time.perf_counter() - begin
    cache_room.PAGE = capacity
    whole = InferenceEngine(bundle, capacity=capacity)
    assert whole.room == rooms[1] > rooms[0], "the cache did not grow"
    equal = bool(np.array_equal(greedy(whole, prompt, tokens)[1], logits))
    if not reference.exists():
        np.save(reference, tokens)
    whole.reset()
    np.save(out, greedy(whole, prompt, np.load(reference).tolist())[1])
    fields = whole._fields(whole.room)
    size = sum(np.prod(shape) * np.dtype(kind).itemsize for shape, kind in fields)
    layers = bundle.config["num_layers"]
    return {
        "cache": float(layers * size / 2**20),
        "peak": peak,
        "planned": bundle.manifest["plan"]["writing"]["peak"] / 2**20,
        "rate": WRITTEN / seconds,
        "equal": equal,
        "tokens": tokens,
    }


def divergence(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the KL divergence of the distributions that rows of logits mean, in nats."""
    p, q = (rows - rows.max(1, keepdims=True) for rows in (left.astype(float), right.astype(float)))
    p, q = (rows - np.log(np.exp(rows).sum(1, keepdims=True)) for rows in (p, q))
    return (np.exp(p) * (p - q)).sum(1)


def compare(folder: Path) -> bool:
    """Print the table of all bundles in a folder; tell whether all is as it should be."""
    whole = True
    print(f"nano, {WRITTEN} tokens after a prompt")
    print(
        f"  {'':24}{'cache MiB':>10}{'peak MiB':>10}{'planned':>10}{'tokens/s':>10}{'grown':>8}"
        f"{'mean KL':>11}{'max KL':>11}{'same top':>10}{'same text':>10}"
    )
    for exact in sorted(folder.glob("*-f32.fabric")):
        target = exact.name.removesuffix("-f32.fabric")
        with tempfile.TemporaryDirectory() as name:
            found = {}
            for form in FORMATS:
                files = [str(Path(name) / file) for file in ("tokens.npy", f"{form}.npy")]
                bundle = folder / f"{target}-{form}.fabric"
                line = [sys.executable, __file__, "--measure", str(bundle), *files]
                run = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
                found[form] = json.loads(run.stdout.splitlines()[-1])
                found[form]["logits"] = np.load(files[1])
        first = found["f32"]
        for form, row in found.items():
            kl = divergence(first["logits"], row["logits"])
            top = np.mean(first["logits"].argmax(1) == row["logits"].argmax(1))
            pairs = zip(first["tokens"], row["tokens"], strict=True)
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), WRITTEN)
            print(
                f"  {target + ' ' + form:24}{row['cache']:10.2f}"
                f"{row['peak']:10.1f}{row['planned']:10.1f}"
                f"{row['rate']:10.0f}{'equal' if row['equal'] else 'OTHER':>8}"
                f"{kl.mean():11.2e}{kl.max():11.2e}{top:10.3f}{same:10}",
                flush=True,
            )
            whole = whole and row["equal"] and row["peak"] <= row["planned"]
    return whole


def main() -> None:
    """Compile, measure one bundle, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--compile", type=Path)
    parser.add_argument("--target", action="append")
    parser.add_argument("--measure", type=Path, nargs=3)
    arguments = parser.parse_args()
    if arguments.compile:
        arguments.compile.mkdir(parents=True, exist_ok=True)
        compile_all(arguments.compile, arguments.target or ["cpu"])
    elif arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
    elif not compare(arguments.folder):
        sys.exit(1)


if __name__ == "__main__":
    main()
