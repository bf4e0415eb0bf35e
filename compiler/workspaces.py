"""What the functions of a step allocate besides their arguments, at each point of a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ..models.graph import KEPT
from ..targets import Target
from .memory import PAGE, Footprint

POOLED = ("cpu", "cuda")
"""Devices on which TVM's virtual machine keeps freed memory by size, see `_Pool`."""
STEPS = 2
"""After which a pool has grown to what it stays at."""
Footprints = Mapping[str, Footprint]


def workspaces(
    found: Footprints, target: Target, state: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return workspace and scratch at each point; the adjoint of a layer's input counts here.

    Parameters
    ----------
    found : mapping of str to Footprint
        Of the functions of one layer and of the ends.
    target : Target
        Where they run.
    state : int
        Bytes of a layer's input.
    """
    at = (
        ("embed",),
        (KEPT if KEPT in found else "layer_forward",),
        ("head_loss_vjp",),
        ("layer_vjp", "layer_accumulate"),
        ("layer_vjp", "layer_accumulate"),
        ("gradient_squares", "update"),
    )
    scratch = [max(found[name].scratch for name in names) for names in at]
    if target.device not in POOLED:
        work = [max(found[name].planned for name in names) for names in at]
        adjoint = (0, 0, 0, state, state, 0)
        return tuple(w + a for w, a in zip(work, adjoint, strict=True)), tuple(scratch)
    pool, inside = _Pool(), _ScratchPool()
    for names in at:
        blocks = Counter(size for name in names for size in found[name].storages)
        if "layer_vjp" in names:
            blocks[state] += 1
        pool.hold(blocks)
    for name in STEPS * [name for names in at for name in names]:
        for requests in found[name].requests:
            inside.serve(requests)
    return (pool.size,) * len(at), (max(*scratch, inside.size),) * len(at)


class _Pool:
    """TVM's pooled allocator: a freed block is kept, and serves requests of its own size alone."""

    def __init__(self) -> None:
        self._blocks: Counter[int] = Counter()

    def hold(self, wanted: Counter[int]) -> None:
        """Take blocks; all that were taken before are free again."""
        self._blocks |= wanted

    @property
    def size(self) -> int:
        """Bytes of all blocks, each rounded to pages."""
        return sum(-(-size // PAGE) * PAGE * count for size, count in self._blocks.items())


class _ScratchPool:
    """TVM's workspaces of one thread: a kernel's requests get the smallest free block that holds
    them, a large one where no small one is free; else the largest free block is made anew."""

    def __init__(self) -> None:
        self._free: list[int] = []

    def serve(self, requests: tuple[int, ...]) -> None:
        """Take what a kernel asks for, in order, and give it back."""
        taken = []
        for request in requests:
            size = -(-request // PAGE) * PAGE
            fits = [block for block in self._free if block >= size]
            if fits or self._free:
                self._free.remove(min(fits) if fits else max(self._free))
            taken.append(min(fits) if fits else size)
        self._free += taken

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return sum(self._free)
