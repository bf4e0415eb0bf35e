"""A comparison as a picture: a bar for each side, with its quartiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runtime.files import atomic_write
from ..runtime.svg import GRID, INK, QUIET, bar, document, line, text

WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 860, 190, 190, 84, 46, 24
OURS, THEIRS = "#2b5fb8", "#a9c1ea"


def plot_sides(sides: Sequence[Mapping[str, Any]], path: Path, title: str, words: str) -> None:
    """Draw the speed of each side.

    Parameters
    ----------
    sides : sequence of mapping
        ``name``, ``tokens_per_s``, ``spread`` (its quartiles) and ``peak_memory_mib`` or None;
        ours first.
    path : Path
        The SVG file to write, atomically.
    title, words : str
        What stands above, and below that.
    """
    most = max(side["spread"][1] for side in sides)
    scale = (WIDTH - LEFT - RIGHT) / most
    height = TOP + ROW * len(sides) + 20
    body = [text(24, 34, title, size=17, weight=600), text(24, 56, words, color=QUIET)]
    body.append(line(LEFT, TOP - 8, LEFT, height - 16, GRID))
    for index, side in enumerate(sides):
        y, speed = TOP + ROW * index, side["tokens_per_s"]
        middle, (low, high) = y + BAR / 2, side["spread"]
        body.append(text(LEFT - 12, middle + 4, side["name"][:24], "end", weight=600))
        body.append(bar(LEFT, y, scale * speed, BAR, THEIRS if index else OURS))
        body.append(line(LEFT + scale * low, middle, LEFT + scale * high, middle, INK))
        end = LEFT + scale * max(speed, high) + 10
        body.append(text(end, middle + 4, f"{speed:,.4g} tokens/s"))
        if side["peak_memory_mib"] is not None:
            memory = f"{side['peak_memory_mib']:,.0f} MiB"
            body.append(text(end, middle + 19, memory, color=QUIET, size=11))
    with atomic_write(path) as file:
        file.write(document(body, title, WIDTH, height).encode())
