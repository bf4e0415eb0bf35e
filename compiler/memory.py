"""What the lowered functions allocate, read from the module: the storage of each Relax function's
static plan, and the scratch memory inside of the kernels that it calls."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx

from ..models.config import ModelConfig
from ..targets import Target
from ..targets.windows import item_bytes
from .options import CompileOptions
from .pipeline import apply_schedules, build_graph, fuse, lower
from .recompute import way_to_recompute

THREADS = 8
"""Threads whose own scratch memory is counted: those of the largest cores that are met."""
PAGE = 4096
"""Bytes to which workspaces are rounded."""
_ON_STACK = 1024
"""Bytes up to which TVM takes a buffer from the stack."""


@dataclass(frozen=True)
class Footprint:
    """The memory of one function while it runs.

    Attributes
    ----------
    storages : tuple of int
        Bytes of each storage of its static plan, results included.
    scratch : int
        Most bytes that a kernel of it allocates inside.
    requests : tuple of tuple of int
        What each kernel of it allocates inside between its launches, in bytes and in order; for
        graphics processors.
    """

    storages: tuple[int, ...]
    scratch: int
    requests: tuple[tuple[int, ...], ...] = ()

    @property
    def planned(self) -> int:
        """Bytes of all storages."""
        return sum(self.storages)

    @classmethod
    def of(cls, record: dict[str, Any]) -> Footprint:
        """Return the footprint whose fields were kept as JSON."""
        requests = tuple(tuple(each) for each in record["requests"])
        return cls(tuple(record["storages"]), record["scratch"], requests)


def footprints(module: tvm.IRModule, target: Target) -> dict[str, Footprint]:
    """Return the footprint of each Relax function of a module lowered for a target.

    Functions over symbolic sizes plan at run time; what they allocate by constant size is counted.
    """
    kernels = {
        name.name_hint: (_scratch(function, target), _requests(function, target))
        for name, function in module.functions.items()
        if isinstance(function, tirx.PrimFunc)
    }
    return {
        name.name_hint: _footprint(function, kernels)
        for name, function in module.functions.items()
        if isinstance(function, relax.Function)
    }


def predicted_footprints(
    config: ModelConfig, target: Target, options: CompileOptions
) -> dict[str, Footprint]:
    """Return the footprints of a model's functions, lowered for one layer of its shape.

    No code is generated: the functions of a layer and of the ends do not depend on the depth.
    """
    # What the runtime alone decides makes no other program.
    same = replace(
        options,
        recompute=way_to_recompute(config, target, options),
        resident_layers=None,
        gradients="all",
        host_ends=False,
        host_inputs=0,
        memory_budget=None,
    )
    return dict(_lowered(replace(config, num_layers=1), _Key(target), same))


class _Key:
    """A target in a cache: its options are a dictionary, which has no hash."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.target == other.target

    def __hash__(self) -> int:
        return hash(self.target.name)


@lru_cache(maxsize=16)
def _lowered(config: ModelConfig, key: _Key, options: CompileOptions) -> dict[str, Footprint]:
    module, _ = apply_schedules(fuse(build_graph(config, options, key.target)), key.target)
    return footprints(lower(module), key.target)


def _footprint(
    function: relax.Function, kernels: dict[str, tuple[int, tuple[int, ...]]]
) -> Footprint:
    storages: list[int] = []
    scratch = 0
    requests: list[tuple[int, ...]] = []

    def visit(node: Any) -> None:
        nonlocal scratch
        if not isinstance(node, relax.Call):
            return
        if getattr(node.op, "name", "") in (
            "relax.vm.alloc_storage",
            "relax.memory.alloc_storage",
        ):
            extents = getattr(node.args[0], "values", [])
            storages.extend(int(e) for e in extents if isinstance(e, tirx.IntImm))
        elif isinstance(node.op, relax.GlobalVar):
            size, parts = kernels.get(node.op.name_hint, (0, ()))
            scratch = max(scratch, size)
            if parts:
                requests.append(parts)

    relax.analysis.post_order_visit(function, visit)
    return Footprint(tuple(sorted(storages, reverse=True)), scratch, tuple(requests))


def _scratch(function: tirx.PrimFunc, target: Target) -> int:
    """Return the bytes that a kernel allocates between its launches, or beside its threads."""
    if target.family != "cpu":
        return sum(map(_rounded, _allocated(function.body, least=0)))
    outside = sum(map(_rounded, _allocated(function.body, least=_ON_STACK)))
    within = 0

    def loops(node: tirx.For, *_: Any) -> None:
        nonlocal within
        if int(node.kind) == tirx.ForKind.PARALLEL:
            within += sum(map(_rounded, _allocated(node.body, least=_ON_STACK)))

    tvm_ffi.structural_walk(function.body, (tirx.For, loops))
    return outside + THREADS * within


def _requests(function: tirx.PrimFunc, target: Target) -> tuple[int, ...]:
    """Return what a kernel of a graphics processor allocates between its launches, in order."""
    return () if target.family == "cpu" else tuple(_allocated(function.body, least=0))


def _allocated(body: Any, least: int) -> list[int]:
    """Return the bytes of each global buffer of more than some bytes, in order."""
    found: list[int] = []

    def allocate(node: tirx.AllocBuffer, *_: Any) -> None:
        size = _bytes(node.buffer)
        if size > least:
            found.append(size)

    tvm_ffi.structural_walk(body, (tirx.AllocBuffer, allocate))
    return found


def _bytes(buffer: tirx.Buffer) -> int:
    extents = [int(e) for e in buffer.shape if isinstance(e, tirx.IntImm)]
    if buffer.scope() != "global" or len(extents) != len(buffer.shape):
        return 0
    return math.prod(extents) * item_bytes(str(buffer.dtype))


def _rounded(size: int) -> int:
    """Return what the backends' `AllocWorkspace` takes for some bytes."""
    step = PAGE
    while size > step * 16:
        step *= 2
    return -(-size // step) * step
