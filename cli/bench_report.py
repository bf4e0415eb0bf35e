"""What `fabric bench` says: an object for scripts, a table for people, a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runtime.files import atomic_write
from ..runtime.measure import Work
from .bench_energy import Meter
from .bench_floor import floor
from .bench_picture import plot_sides
from .bench_rounds import Calibration, Measured, ratio
from .output import Output

PICTURE, RESULT = "bench.svg", "bench.json"


def result(
    manifest: dict[str, Any],
    work: Work,
    measured: Sequence[Measured],
    calibration: Calibration,
    meter: Meter,
) -> dict[str, Any]:
    """Return everything that was found, as --json prints it.

    Returns
    -------
    dict
        ``tokens_per_s``, ``spread`` (quartiles), ``peak_memory_mib``, ``fraction_of_floor``,
        ``floor``, ``calibration``, ``energy`` and what was measured; with another side ``against``
        and ``ratio``, the median of the quotients of the speeds, with ``ratio_spread``.
    """
    ours, *others = measured
    rates = calibration.to_json()
    best = floor(manifest, work, rates or {})
    if rates is None:
        best["reason"] = calibration.reason
    speed = ours.to_json()
    found = {
        "model": manifest["model"]["name"],
        "target": manifest["target"]["name"],
        "work": work.kind,
        "batch": work.batch,
        "tokens": work.tokens,
        "context": work.context,
        "rounds": len(ours.rounds),
        **{key: speed[key] for key in ("tokens_per_s", "spread", "peak_memory_mib")},
        "host_memory_mib": max(said["host_memory_mib"] for said in ours.rounds),
        "fraction_of_floor": _fraction(speed["tokens_per_s"], best["tokens_per_s"]),
        "floor": best,
        "calibration": rates,
        "energy": {
            "joules_per_token": speed["joules_per_token"],
            "source": meter.source,
            "reason": meter.reason,
        },
    }
    if others:
        middle, spread = ratio(ours.speeds, others[0].speeds)
        found["against"] = others[0].to_json()
        found |= {"ratio": middle, "ratio_spread": list(spread)}
    return found


def _fraction(speed: float, most: float | None) -> float | None:
    return None if most is None else speed / most


def title(found: dict[str, Any]) -> str:
    """Say in a few words what was measured."""
    rows = f"{found['batch']} x {found['tokens']} tokens"
    what = {
        "train": f"LoRA steps of {rows}",
        "prefill": f"prompts of {rows}",
        "decode": f"writing {rows} after {found['context']}",
    }[found["work"]]
    return f"{found['model']} on {found['target']}, {what}"


def report(output: Output, found: dict[str, Any], folder: Path | None) -> None:
    """Print the table and the object, and write the files that were asked for."""
    ours = {
        **found,
        "name": "fabric",
        "joules_per_token": found["energy"]["joules_per_token"],
    }
    sides = [ours, found["against"]] if "against" in found else [ours]
    output.say(f"\n[bold]{title(found)}[/], {found['rounds']} rounds")
    table = output.table(
        "", "tokens/s", "quartiles", "memory", "of the floor", "energy", numbers=range(1, 6)
    )
    for side in sides:
        table.add_row(*_row(side, found))
    output.show(table)
    if "ratio" in found:
        low, high = found["ratio_spread"]
        output.say(
            f"[bold]{found['ratio']:.2f} x[/] {found['against']['name']} "
            f"({low:.2f} to {high:.2f} in half of the rounds)"
        )
    _explain(output, found)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / RESULT) as file:
            file.write((json.dumps(found, indent=1) + "\n").encode())
        words = "median speed, with the quartiles of the rounds; peak memory"
        plot_sides(sides, folder / PICTURE, title(found), words)
        output.say(f"Written: [bold]{folder / RESULT}[/] and {PICTURE} beside it.")
    output.result(found)


def _row(side: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return a side's line of the table."""
    low, high = side["spread"]
    memory, joules = side["peak_memory_mib"], side["joules_per_token"]
    fraction = _fraction(side["tokens_per_s"], found["floor"]["tokens_per_s"])
    return [
        side["name"],
        f"{side['tokens_per_s']:,.1f}",
        f"{low:,.1f} - {high:,.1f}",
        "" if memory is None else f"{memory:,.0f} MiB",
        "" if fraction is None else f"{fraction:.0%}",
        "" if joules is None else f"{1e3 * joules:,.2f} mJ/token",
    ]


def _explain(output: Output, found: dict[str, Any]) -> None:
    """Say what the floor counts and what the machine's rates were, or why they are not known."""
    best, rates = found["floor"], found["calibration"]
    if best["tokens_per_s"] is None:
        output.say(f"The floor is not known: {best['reason']}.")
    else:
        output.say(f"The floor, {best['tokens_per_s']:,.1f} tokens/s, counts {best['counted']}.")
    if rates is not None:
        shown = (f"{rates[name]:,.4g} {unit}" for name, unit in UNITS.items() if name in rates)
        output.say(f"The machine's rates meanwhile: {', '.join(shown)}.")
    if found["energy"]["reason"] is not None:
        output.say(f"Energy is not known: {found['energy']['reason']}.")


UNITS = {
    "float32_gflops": "GFLOP/s in float32",
    "int8_gops": "GOP/s in int8",
    "read_gb_s": "GB/s read",
    "ternary_gb_s": "GB/s of ternary weights",
    "copy_gb_s": "GB/s copied",
    "matrix_tflops": "TFLOP/s in matrix products",
}
"""The rates, by their keys."""
