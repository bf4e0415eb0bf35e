"""The README's tables of speed and memory, made from what the programs of this folder printed.

Run as ``python bench/readme_tables.py``, which writes them between the README's marks; with
``--check`` it only says whether they are what it would write. A result is what `bench/headline.py`
wrote as JSON, or, of earlier measurements, the text that it printed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
README = Path(__file__).parents[1] / "README.md"
TORCH = "torch-h200.json"
"""A list of what `fabric bench --against torch --json` said on one H200, where there is one."""
MEMORY = "memory-compare-cuda-h200.txt"
"""What `bench/memory.py compare` printed, where there is one."""
BUDGETS = {"a processor": "memory-budgets-cpu.txt", "an H200": "memory-budgets-cuda-h200.txt"}
"""What `bench/memory.py budgets` printed, where it did."""
MODELS = ("125M", "1B")
ROWS = {
    "LoRA training": "train",
    "its peak memory": "memory",
    "prefill": "prefill",
    "decode": "decode",
}
UNITS = {"train": "tokens/s", "memory": "MiB", "prefill": "tokens/s", "decode": "tokens/s"}
_PRINTED = {
    "LoRA training, tokens/s": "train",
    "prefill 128, tokens/s": "prefill",
    "decode, tokens/s": "decode",
    "training peak memory, MiB": "memory",
}
Figures = dict[tuple[str, str], tuple[float, float | None, float | None]]
"""Ours, the rival's, and their ratio where the two took turns, by model and by row."""


def figures(name: str) -> Figures:
    """Read a result: its JSON where there is one, else its text."""
    path = RESULTS / f"{name}.json"
    if path.is_file():
        return _from_json(json.loads(path.read_text(encoding="utf-8")))
    return _from_text((RESULTS / f"{name}.txt").read_text(encoding="utf-8"))


def _from_json(results: list[dict]) -> Figures:
    found: Figures = {}
    for result in results:
        model = result["model"].removeprefix("random:")
        other = result.get("against", {})
        speeds = result["tokens_per_s"], other.get("tokens_per_s"), result.get("ratio")
        long = result["work"] == "prefill" and result["tokens"] != 128
        found[model, f"prefill {result['tokens']}" if long else result["work"]] = speeds
        if result["work"] == "train":
            memory = result["peak_memory_mib"], other.get("peak_memory_mib"), None
            found[model, "memory"] = memory
    return found


def _from_text(text: str) -> Figures:
    found: Figures = {}
    model = ""
    for line in text.splitlines():
        if heading := re.match(r"(\S+), LoRA rank", line):
            model = heading[1]
        for label, row in _PRINTED.items():
            if line.strip().startswith(label):
                ours, theirs = line.split(label)[1].split()[:2]
                found[model, row] = float(ours), float(theirs), None
    return found


def number(value: float) -> str:
    """Write a figure with three digits at least, and no more than it deserves."""
    return f"{value:,.1f}" if value < 20 else f"{value:,.0f}"


def processor_table() -> list[str]:
    """Return the lines of the processor's table: ours, and the rival's in brackets."""
    found = figures("headline-cpu-avx512")
    lines = ["| | 125M | 1B |", "| --- | --- | --- |"]
    for label, row in ROWS.items():
        cells = []
        for model in MODELS:
            ours, theirs, ratio = found[model, row]
            times = "" if ratio is None else f": {ratio:.1f} x"
            other = "" if theirs is None else f" ({number(theirs)}){times}"
            cells.append(f"{number(ours)} {UNITS[row]}{other}")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def device_table() -> list[str]:
    """Return the lines of the H200's table, a column for each way to it, and the rival's.

    Where the two took turns, it is said how many times as fast ours was.
    """
    ways = {"CUDA": "cuda", "Vulkan": "vulkan", "OpenCL": "opencl"}
    found = {way: figures(f"headline-{name}-h200") for way, name in ways.items()}
    lines = [f"| | {' | '.join(ways)} | rival |", "| --- |" + " --- |" * (len(ways) + 1)]
    for model in (*MODELS, "2B-4T"):
        for label, row in (ROWS | {"prefill of 512": "prefill 512"}).items():
            if not any((model, row) in found[way] for way in ways):
                continue
            what = "its memory on the device, MiB" if row == "memory" else f"{label}, tokens/s"
            name = f"{model}: {what}" if row == "train" else what
            figures_of = [found[way].get((model, row), (None, None, None)) for way in ways]
            cells = [_figure(ours, ratio) for ours, _, ratio in figures_of]
            rival = next((other for _, other, _ in figures_of if other is not None), None)
            cells.append("" if rival is None else number(rival))
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _figure(ours: float | None, ratio: float | None) -> str:
    """Write a speed, and how many times the rival's it is; nothing where there is none."""
    if ours is None:
        return ""
    return number(ours) + (f": {ratio:.1f} x" if ratio is not None else "")


def _memory(side: Mapping[str, Any]) -> str:
    """Write a side's memory, "not told" where it is not known."""
    told = side["peak_memory_mib"]
    return "not told" if told is None else number(told)


def torch_table() -> list[str]:
    """Return the lines of the comparison with PyTorch, a row for each work that was measured."""
    lines = ["| | fabric | PyTorch | ratio | memory, MiB | of the floor |"]
    lines.append("| --- |" + " --- |" * 5)
    for result in json.loads((RESULTS / TORCH).read_text(encoding="utf-8")):
        other, fraction = result["against"], result["fraction_of_floor"]
        cells = [
            f"{result['model'].removeprefix('random:')}: {result['work']}, "
            f"{result['batch']} x {result['tokens']}, {other['name']}",
            f"{number(result['tokens_per_s'])} tokens/s",
            f"{number(other['tokens_per_s'])} tokens/s",
            f"{result['ratio']:.2f} x",
            f"{_memory(result)} ({_memory(other)})",
            "" if fraction is None else f"{fraction:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


_MEASURED = re.compile(r"(\S+) +(f16|2bit|1\.6bit) +(\S.*?) {2,}[\d,]+ +([\d,]+)")


def memory_table() -> list[str]:
    """Return the lines of the training memory beside dense models, a row for each saving."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    for line in (RESULTS / MEMORY).read_text(encoding="utf-8").splitlines():
        if match := _MEASURED.fullmatch(line.rstrip()):
            model, weights, saving, mib = match.groups()
            found.setdefault(saving, {})[model, weights] = float(mib.replace(",", ""))
    dense = {model: name for model, name in next(iter(found.values())) if name == "f16"}
    lines = [f"| | BitNet 1B | {' | '.join(dense)} |", "| --- |" + " --- |" * (len(dense) + 1)]
    for saving, memory in found.items():
        ours = memory["1B", "1.6bit"]
        cells = [f"{number(ours)} MiB"]
        for model in dense:
            other = memory[model, "f16"]
            cells.append(f"{number(other)} MiB: {1 - ours / other:.1%} less")
        lines.append(f"| {saving} | {' | '.join(cells)} |")
    return lines


_BUDGET = re.compile(
    r"(?P<model>\S+) +(?P<budget>[\d,]+) +(?P<planned>[\d,.]+) +(?P<measured>[\d,.]+) +"
    r"(?P<seconds>[\d.]+) +(?P<losses>\S+ to \S+) +(?P<chosen>\S.*)"
)


def budgets_table() -> list[str]:
    """Return the lines of training within budgets, a row for each model, budget and machine."""
    lines = ["| | budget | planned | measured | what was chosen |", "| --- |" + " --- |" * 4]
    for machine, name in BUDGETS.items():
        for line in (RESULTS / name).read_text(encoding="utf-8").splitlines():
            if (found := _BUDGET.fullmatch(line.rstrip())) is None:
                continue
            cells = [
                f"{found['model']} on {machine}",
                f"{found['budget']} MiB",
                found["planned"],
                found["measured"],
                found["chosen"],
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


TABLES: Mapping[str, list[str]] = {
    "processor": processor_table(),
    "h200": device_table(),
    **({"torch": torch_table()} if (RESULTS / TORCH).is_file() else {}),
    **({"memory": memory_table()} if (RESULTS / MEMORY).is_file() else {}),
    **(
        {"budgets": budgets_table()}
        if all((RESULTS / name).is_file() for name in BUDGETS.values())
        else {}
    ),
}


def filled(text: str) -> str:
    """Return the README with its tables as the results say.

    Raises
    ------
    ValueError
        If a table's marks are missing.
    """
    for name, lines in TABLES.items():
        begin, end = f"<!-- {name}: bench/readme_tables.py -->\n", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"README.md has no marks of the table {name}")
        text = before + begin + "\n".join(lines) + "\n" + end + after
    return text


def main() -> None:
    """Write the tables, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    wanted = filled(text)
    if arguments.check:
        sys.exit("README.md's tables are not those of bench/results" if wanted != text else 0)
    README.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
