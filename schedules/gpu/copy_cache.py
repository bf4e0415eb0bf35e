"""The copy of a cache to a larger one: a launch for each field, four elements a thread."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind, static
from .elements import threads
from .kernel import Gpu, build, elements
from .vectors import LANES, fours


def copy_cache(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out the copy; the fields of the old cache come first."""
    gpu = Gpu(target)

    def body(*fields: Buffer) -> None:
        count = len(fields) // 2
        for old, new in zip(fields[:count], fields[count:], strict=True):
            _copy(gpu, old, new)

    return build(function, body)


def _copy(gpu: Gpu, old: Buffer, new: Buffer) -> None:
    """Emit the launch of one field."""
    width = static(old.shape[-1])
    # Positions are whole vectors; the words of a head need not be.
    if width is None or width % LANES == 0:
        old, new = fours(old), fours(new)
    count: Expr = 1
    for extent in old.shape:
        count = count * extent

    def move(index: Expr) -> None:
        place, rest = [], index
        for extent in reversed(list(old.shape)[1:]):
            rest = bind(rest)
            place.append(bind(rest % extent))
            rest = rest // extent
        at = [rest, *reversed(place)]
        T.buffer_store(new, old[tuple(at)], at)

    elements(count, threads(gpu), move)
