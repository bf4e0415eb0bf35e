"""A memory plan for people: a table of its moments, and a picture of it over a step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from .output import Output

MIB = 1 << 20
MARKS = 60
"""Letters of the longest bar."""
WIDTH, HEIGHT = 900, 470
LEFT, RIGHT, TOP, BOTTOM = 70, 250, 60, 50
COLOURS = (
    "#2b5fb8",
    "#6f96d8",
    "#b4c9ee",
    "#d4570f",
    "#eb9a66",
    "#f6cfb4",
    "#2f8f6b",
    "#86c5ab",
    "#8a63b8",
    "#c3abdf",
    "#66727f",
    "#aab4bf",
)
_FONT = "font-family='system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, sans-serif'"
Plan = dict[str, Any]


def show_plan(output: Output, plan: Plan) -> None:
    """Print each row of a plan, as the manifest keeps it, at each of its points, in MiB."""
    points: Sequence[str] = plan["points"]
    table = output.table("MiB", *points, numbers=tuple(range(1, len(points) + 1)))
    for name, sizes in plan["rows"]:
        if any(sizes):
            table.add_row(name, *(f"{size / MIB:,.1f}" for size in sizes))
    totals = [sum(sizes) for sizes in zip(*(row for _, row in plan["rows"]), strict=True)]
    table.add_row("[bold]together[/]", *(f"[bold]{size / MIB:,.1f}[/]" for size in totals))
    output.show(table)


def show_picture(output: Output, plan: Plan) -> None:
    """Print a plan's points as bars of letters, one letter a row of the plan."""
    rows = [(name, sizes) for name, sizes in plan["rows"] if any(sizes)]
    mark = max(plan["peak"] / MARKS, 1)
    letters = [chr(ord("A") + index) for index in range(len(rows))]
    width = max(len(point) for point in plan["points"])
    output.say(f"Over the step, {mark / MIB:,.1f} MiB a letter:")
    for index, point in enumerate(plan["points"]):
        bar, below = "", 0
        for letter, (_, sizes) in zip(letters, rows, strict=True):
            # Ends are rounded, not lengths: the bar is as long as its sum.
            above = below + sizes[index]
            bar += letter * (round(above / mark) - round(below / mark))
            below = above
        output.say(f"  {point:{width}} {bar}")
    names = (f"{letter} {name}" for letter, (name, _) in zip(letters, rows, strict=True))
    output.say("  " + ", ".join(names) + ".")


def draw_plan(plan: Plan, path: Path, title: str) -> None:
    """Draw a plan's rows over each other, from point to point, as an SVG file.

    Raises
    ------
    FileError
        Where the file can't be written.
    """
    from ..runtime.files import atomic_write

    rows = [(name, sizes) for name, sizes in plan["rows"] if any(sizes)]
    scale = _Scale(len(plan["points"]), plan["peak"])
    base = [0] * len(plan["points"])
    parts = []
    for index, (name, sizes) in enumerate(rows):
        top = [low + size for low, size in zip(base, sizes, strict=True)]
        colour = COLOURS[index % len(COLOURS)]
        outline = [*scale.points(top), *reversed(scale.points(base))]
        parts.append(f"<polygon points='{' '.join(outline)}' fill='{colour}'/>")
        y = HEIGHT - BOTTOM - 24 * (index + 1)
        words = f"{name}: {max(sizes) / MIB:,.1f}"
        parts.append(f"<rect x='{WIDTH - RIGHT + 20}' y='{y}' width='12' height='12' ")
        parts.append(f"fill='{colour}'/>{_text(WIDTH - RIGHT + 38, y + 11, words)}")
        base = top
    for index, name in enumerate(plan["points"]):
        place = ("start", "middle", "end")[(index > 0) + (index == len(plan["points"]) - 1)]
        parts.append(_text(scale.x(index), HEIGHT - BOTTOM + 22, name, place))
    for size in (0, plan["peak"] // 2, plan["peak"]):
        parts.append(_text(LEFT - 8, scale.y(size) + 4, f"{size / MIB:,.0f}", "end"))
    parts.append(_text(LEFT, 32, f"{title}: at most {plan['peak'] / MIB:,.1f} MiB", size=17))
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' {_FONT}>"
    page = f"<rect width='{WIDTH}' height='{HEIGHT}' fill='#ffffff'/>"
    with atomic_write(path) as file:
        file.write((head + page + "".join(parts) + "</svg>\n").encode())


class _Scale:
    """Where points and bytes lie on the picture."""

    def __init__(self, points: int, peak: int) -> None:
        self._points, self._peak = points, peak

    def x(self, index: int) -> float:
        return LEFT + index / (self._points - 1) * (WIDTH - LEFT - RIGHT)

    def y(self, size: float) -> float:
        return HEIGHT - BOTTOM - size / self._peak * (HEIGHT - TOP - BOTTOM)

    def points(self, sizes: Sequence[int]) -> list[str]:
        """Return corners of a line over the points."""
        return [f"{self.x(i):.1f},{self.y(size):.1f}" for i, size in enumerate(sizes)]


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 12) -> str:
    place = f"x='{x:.1f}' y='{y:.1f}' font-size='{size}' text-anchor='{anchor}'"
    return f"<text {place} fill='#1f2933'>{escape(words)}</text>"
