"""Pieces of the pictures: SVG that any browser shows, without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

INK, QUIET, GRID = "#1f2933", "#66727f", "#e6e9ed"
_FONT = "font-family='system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, sans-serif'"


def document(body: Sequence[str], title: str, width: float, height: float) -> str:
    """Return a whole picture of so many pixels, on white."""
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' "
            f"width='{width}' height='{height}' role='img' {_FONT} font-size='13'>",
            f"<title>{escape(title)}</title>",
            f"<rect width='{width}' height='{height}' fill='#ffffff'/>",
            *body,
            "</svg>\n",
        ]
    )


def text(
    x: float,
    y: float,
    words: str,
    anchor: str = "start",
    color: str = INK,
    size: int = 13,
    weight: int = 400,
) -> str:
    """Return words whose foot is at a place."""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{color}' "
        f"font-size='{size}' font-weight='{weight}'>{escape(words)}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    """Return a straight line."""
    return f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{color}'/>"


def polyline(points: str, color: str, width: float) -> str:
    """Return a line through points, given as SVG's `points` attribute."""
    return (
        f"<polyline points='{points}' fill='none' stroke='{color}' stroke-width='{width}' "
        "stroke-linejoin='round' stroke-linecap='round'/>"
    )


def bar(x: float, y: float, width: float, height: float, color: str) -> str:
    """Return a filled rectangle, by its upper left corner."""
    return (
        f"<rect x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}' rx='2' "
        f"fill='{color}'/>"
    )
