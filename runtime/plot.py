"""The loss curve as a picture: one SVG file that any browser shows, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import atomic_write
from .svg import GRID, QUIET, document, line, polyline, text

WIDTH, HEIGHT = 860, 460
LEFT, RIGHT, TOP, BOTTOM = 68, 100, 96, 58
TRAIN_DOT, TRAIN_LINE, VALIDATION = "#a9c1ea", "#2b5fb8", "#d4570f"
_MOST_POINTS = 600

Point = tuple[float, float]


class Axes:
    """Where values lie on the picture.

    Parameters
    ----------
    points : sequence of (float, float)
        All points to be shown, as (step, loss).
    """

    def __init__(self, points: Sequence[Point]) -> None:
        steps, losses = zip(*points, strict=True)
        self.x_ticks = ticks(0.0, max(1.0, *steps), 7)
        low, high = min(losses), max(losses)
        pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        self._x_range = (0.0, max(1.0, *steps))
        self._y_range = (max(0.0, low - pad) if low >= 0 else low - pad, high + pad)
        self.y_ticks = ticks(*self._y_range, 8)

    def x(self, step: float) -> float:
        """Give a step's place, in pixels from the left."""
        low, high = self._x_range
        return LEFT + (step - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, loss: float) -> float:
        """Give a loss's place, in pixels from the top."""
        low, high = self._y_range
        return HEIGHT - BOTTOM - (loss - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def path(self, points: Iterable[Point]) -> str:
        """Give a line through points as SVG's `points` attribute."""
        return " ".join(f"{self.x(step):.1f},{self.y(loss):.1f}" for step, loss in points)


def plot_losses(entries: Iterable[Mapping[str, Any]], path: Path, title: str) -> bool:
    """Draw training and validation loss over steps.

    Parameters
    ----------
    entries : iterable of mapping
        Lines of metrics.jsonl: `step` with `loss`, or `step` with `eval_loss`.
    path : Path
        The SVG file to write, atomically.
    title : str

    Returns
    -------
    bool
        Whether there was anything to draw; no file is written otherwise.

    Raises
    ------
    FileError
        Where the file cannot be written.
    """
    train: list[Point] = []
    validation: list[Point] = []
    for entry in entries:
        kind, points = ("eval_loss", validation) if "eval_loss" in entry else ("loss", train)
        if isinstance(entry.get(kind), (int, float)):
            points.append((float(entry["step"]), float(entry[kind])))
    if not train and not validation:
        return False
    axes = Axes(train + validation)
    body = [
        *_frame(axes, title, _summary(train, validation)),
        *_training(axes, train),
        *_validation(axes, validation),
        *_end_labels(axes, train, validation),
    ]
    with atomic_write(path) as file:
        file.write(document(body, title, WIDTH, HEIGHT).encode())
    return True


def _frame(axes: Axes, title: str, summary: str) -> list[str]:
    """Draw title, grid, ticks and the axes' names."""
    parts = [
        text(LEFT, 32, title, size=17, weight=600),
        text(LEFT, 54, summary, color=QUIET),
        text(LEFT, TOP - 10, "loss (nats per token)", color=QUIET, size=12),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "optimizer step", "middle", QUIET, 12),
    ]
    for value in axes.y_ticks:
        y = axes.y(value)
        parts.append(line(LEFT, y, WIDTH - RIGHT, y, GRID))
        parts.append(text(LEFT - 10, y + 4, number(value, axes.y_ticks), "end", QUIET, 12))
    bottom = HEIGHT - BOTTOM
    parts.append(line(LEFT, bottom, WIDTH - RIGHT, bottom, QUIET))
    for value in axes.x_ticks:
        x = axes.x(value)
        parts.append(line(x, bottom, x, bottom + 5, QUIET))
        parts.append(text(x, bottom + 20, number(value, axes.x_ticks), "middle", QUIET, 12))
    return parts


def _training(axes: Axes, points: Sequence[Point]) -> list[str]:
    """Draw each step's loss as a dot, and their smoothed course as a line."""
    shown = thinned(points)
    parts = [
        f"<circle cx='{axes.x(step):.1f}' cy='{axes.y(loss):.1f}' r='2.2' fill='{TRAIN_DOT}'/>"
        for step, loss in shown
    ]
    if len(shown) > 1:
        parts.append(polyline(axes.path(smoothed(shown)), TRAIN_LINE, 2.2))
    return parts


def _validation(axes: Axes, points: Sequence[Point]) -> list[str]:
    """Draw the validations as ringed dots, joined."""
    parts = [polyline(axes.path(points), VALIDATION, 1.8)] if len(points) > 1 else []
    parts += [
        f"<circle cx='{axes.x(step):.1f}' cy='{axes.y(loss):.1f}' r='4' fill='{VALIDATION}' "
        "stroke='#ffffff' stroke-width='1.5'/>"
        for step, loss in points
    ]
    return parts


def _end_labels(axes: Axes, train: Sequence[Point], validation: Sequence[Point]) -> list[str]:
    """Name each curve at its end, instead of a legend, without one name over the other."""
    labels = []
    if train:
        labels.append((axes.y(smoothed(thinned(train))[-1][1]), "training", TRAIN_LINE))
    if validation:
        labels.append((axes.y(validation[-1][1]), "validation", VALIDATION))
    labels.sort()
    if len(labels) == 2 and labels[1][0] - labels[0][0] < 18:
        middle = (labels[0][0] + labels[1][0]) / 2
        labels = [(middle - 9, *labels[0][1:]), (middle + 9, *labels[1][1:])]
    return [
        text(WIDTH - RIGHT + 12, y + 4, name, color=color, weight=600) for y, name, color in labels
    ]


def _summary(train: Sequence[Point], validation: Sequence[Point]) -> str:
    """Say in a line what the picture shows."""
    words = []
    if train:
        end = smoothed(thinned(train))[-1][1]
        words.append(f"{int(train[-1][0])} steps, training loss ends at {end:.3f}")
    if len(validation) > 1:
        best = min(loss for _, loss in validation[1:])
        words.append(f"validation from {validation[0][1]:.3f} to {best:.3f} at best")
    elif validation:
        words.append(f"validation {validation[0][1]:.3f}")
    return "; ".join(words)


def thinned(points: Sequence[Point]) -> Sequence[Point]:
    """Give at most 600 points: where there are more, the means of neighbours."""
    size = math.ceil(len(points) / _MOST_POINTS)
    if size <= 1:
        return points
    groups = [points[begin : begin + size] for begin in range(0, len(points), size)]
    return [
        (sum(step for step, _ in group) / len(group), sum(loss for _, loss in group) / len(group))
        for group in groups
    ]


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Smooth losses by local straight lines with tricube weights (LOESS, Cleveland 1979).

    A running average would lag behind a falling curve, and make training look worse than
    validation; a straight line through a tenth of the points to either side does not.
    """
    reach = max(3.0, len(points) / 10)
    course = []
    for center in range(len(points)):
        near = range(
            max(0, math.ceil(center - reach)), min(len(points), math.floor(center + reach) + 1)
        )
        weight = total_x = total_y = total_xx = total_xy = 0.0
        for index in near:
            x, y = float(index - center), points[index][1]
            w = (1 - (abs(x) / (reach + 1)) ** 3) ** 3
            weight, total_x, total_y = weight + w, total_x + w * x, total_y + w * y
            total_xx, total_xy = total_xx + w * x * x, total_xy + w * x * y
        spread = weight * total_xx - total_x * total_x
        slope = (weight * total_xy - total_x * total_y) / spread if spread > 0 else 0.0
        course.append((points[center][0], (total_y - slope * total_x) / weight))
    return course


def ticks(low: float, high: float, most: int) -> list[float]:
    """Give at most `most` + 1 round numbers within low to high, 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def number(value: float, among: Sequence[float]) -> str:
    """Write a tick's number with as many decimals as its neighbours need."""
    step = among[1] - among[0] if len(among) > 1 else 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{decimals}f}"
