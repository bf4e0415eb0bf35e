"""The shared builder of the graphics processors' kernels: launches, memories, reductions.

One PrimFunc may hold several launches; what the first leaves in a :func:`scratch` buffer the next
reads. A typical rule::

    def apply(function, parameters, target):
        gpu = Gpu(target)

        def body(x, y):
            rows, columns = shape(x)
            with launch([rows], [gpu.threads]) as (row, thread):
                sums = reduction(gpu, gpu.threads, thread)
                sums.put([partial])
                ...

        return build(function, body)

Every index is int32: address arithmetic in 64 bits would cost more than the work. Loops that count
registers are Python's, so that arrays in registers are only ever addressed by numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from ...targets import MatrixUnit, Target
from ..tir import Buffer, Expr, bind, static, when

AXES = "xyz"
DOT = "fabric_dot4"
"""The function of four 8-bit products that the device's language, or our preamble, provides."""


@dataclass(frozen=True)
class Gpu:
    """What a target's kernels may use.

    Attributes
    ----------
    target : Target
        The target.
    """

    target: Target

    @property
    def threads(self) -> int:
        """Threads of an ordinary work-group."""
        assert self.target.limits is not None
        return min(256, self.target.limits.max_threads)

    @property
    def shared(self) -> bool:
        """Whether memory shared by a work-group is faster than global memory."""
        return "shared_memory" in self.target.features

    @property
    def subgroup(self) -> int:
        """Threads that run together; 0 where it is not known."""
        assert self.target.limits is not None
        return self.target.limits.subgroup

    def matrix(self, factors: str) -> MatrixUnit | None:
        """Return the unit of matrices of a dtype, None where there is none."""
        return next((m for m in self.target.matrices if m.factors == factors), None)

    @property
    def halves(self) -> bool:
        """Whether the device computes with float16."""
        return "fp16" in self.target.features

    @property
    def widens(self) -> bool:
        """Whether a cast of a float16 to float32 is exact even below 2^-14. Where it is, float32
        may be flushed to zero below 2^-126, so that halves must not be made of such."""
        return self.halves and "small_halves" in self.target.features

    @property
    def warpgroups(self) -> bool:
        """Whether the tensor cores multiply beside the threads, as Hopper's do."""
        return "warpgroup" in self.target.features

    @property
    def subgroups(self) -> bool:
        """Whether the threads of a subgroup can combine their values: the functions named
        ``fabric_subgroup_*`` are there, which must be in control flow that is uniform."""
        return "subgroup" in self.target.features


def _int32(extent: Expr) -> Expr:
    """Return an extent as int32: a number, or a cast of a variable."""
    count = static(extent)
    return extent if count is None else tirx.const(count, "int32")


def build(function: tirx.PrimFunc, body: Callable[..., None]) -> tirx.PrimFunc:
    """Return a PrimFunc over the same tensors whose statements `body(*buffers)` emits.

    The buffers have int32 extents, symbolic ones under variables of their own: the calling
    convention fills either kind from the tensors' shapes.
    """
    variables: dict[Any, tirx.Var] = {}

    def extent(value: Expr) -> Expr:
        if static(value) is not None:
            return tirx.const(static(value), "int32")
        if value not in variables:
            variables[value] = tirx.Var(value.name, "int32")
        return variables[value]

    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True})
        body(
            *[
                T.arg(p.name, T.buffer([extent(e) for e in p.shape], p.dtype))
                for p in function.params
            ]
        )
    return builder.get()


@contextmanager
def launch(grid: Sequence[Expr], block: Sequence[int]) -> Iterator[list[Expr]]:
    """Open a device kernel; yields the block's indices, then the thread's, axis x first."""
    with ExitStack() as stack:
        indices = []
        for prefix, extents in (("blockIdx", grid), ("threadIdx", block)):
            for axis, extent in zip(AXES, extents, strict=False):
                frame = T.launch_thread(f"{prefix}.{axis}", _int32(extent))
                indices.append(stack.enter_context(frame))
        yield indices


def loop(extent: Expr, begin: Expr = 0) -> Any:
    """Open ``for i in range(begin, extent)`` in a kernel; use with `with`."""
    return T.serial(_int32(begin), _int32(extent))


def scratch(shape: Sequence[Expr], dtype: str = "float32") -> Buffer:
    """Allocate device memory between the launches of one PrimFunc; call it outside of them."""
    return T.alloc_buffer(list(shape), dtype)


def shared(shape: Sequence[int], dtype: str = "float32") -> Buffer:
    """Allocate memory of a work-group, inside a launch."""
    return T.alloc_buffer(list(shape), dtype, scope="shared")


def registers(shape: Sequence[int], dtype: str = "float32") -> Buffer:
    """Allocate an array of a thread, inside a launch; address it by Python ints alone."""
    return T.alloc_buffer(list(shape), dtype, scope="local")


def barrier() -> None:
    """Let the threads of a work-group wait for each other's writes to shared memory."""
    T.evaluate(T.tvm_storage_sync("shared"))


def ceil_div(size: Expr, step: int) -> Expr:
    """Return ``ceil(size / step)`` of a static or symbolic size."""
    return (size + (step - 1)) // step


def dot4(left: Expr, right: Expr, total: Expr) -> Expr:
    """Return `total` plus the four products of the signed bytes of two int32 words."""
    return T.call_pure_extern("int32", DOT, left, right, total)


def elements(count: Expr, threads: int, body: Callable[[Expr], None], several: int = 1) -> None:
    """Launch a thread for every `several` elements and emit ``body(index)`` for each of them.

    Neighbouring threads have neighbouring elements.
    """
    share = threads * several
    with launch([ceil_div(count, share)], [threads]) as (block, thread):
        size = static(count)
        exact = size is not None and size % share == 0
        for turn in range(several):
            index = bind(block * share + turn * threads + thread)
            if exact:
                body(index)
            else:
                when(index < count, partial(body, index))


def strided(count: int, threads: int, thread: Expr, body: Callable[[Expr], None]) -> None:
    """Share ``range(count)`` among the threads of a work-group, neighbours side by side."""
    with loop(ceil_div(count, threads)) as step:
        index = bind(step * threads + thread)
        if count % threads:
            when(index < count, lambda: body(index))
        else:
            body(index)
