"""Rewriting a scheduled kernel so that tensors above the largest buffer reach it as windows.

The kernel is lowered until every access is of one axis. Then a load becomes a load from the window
that holds the element, found by comparing the index; a store likewise. Loads are lazy: only the
chosen window is read. What is computed, and in which order, stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import SBlock

from ..schedules.gpu.vectors import LANES, four
from ..targets.windows import item_bytes, windows
from .device_code import flattened

Expr = Any
Stmt = Any
DATA = "tirx.buffer_data"


@dataclass(frozen=True)
class _View:
    """One tensor, or a view of it, as its windows.

    Attributes
    ----------
    parts : list of Buffer
        A buffer of one axis over each window.
    step : int
        Elements of the view in every window but the last.
    """

    parts: list[tirx.Buffer]
    step: int

    def choose(self, index: Expr, leaf: Callable[[tirx.Buffer, int], Any], branch: Any) -> Any:
        """Return ``leaf(window, its first element)`` of an index' window under run-time cases."""

        def between(begin: int, end: int) -> Any:
            if end - begin == 1:
                return leaf(self.parts[begin], begin * self.step)
            middle = (begin + end) // 2
            below = index < tirx.const(middle * self.step, index.ty.dtype)
            return branch(below, between(begin, middle), between(middle, end))

        return between(0, len(self.parts))


def window_shapes(shape: Sequence[Any], dtype: str, limit: int) -> list[tuple[int, ...]] | None:
    """Return a tensor's windows, see :func:`windows`; None where it fits or is not static."""
    extents = [int(e.value) for e in shape if isinstance(e, tirx.IntImm)]
    return windows(extents, dtype, limit) if len(extents) == len(shape) else None


def _windows_of(buffer: tirx.Buffer, limit: int) -> list[tuple[int, ...]] | None:
    return window_shapes(buffer.shape, str(buffer.dtype), limit)


def split_kernel(function: tirx.PrimFunc, limit: int) -> tuple[tirx.PrimFunc, list[int]]:
    """Return a scheduled kernel over windows.

    Parameters
    ----------
    function : tirx.PrimFunc
        A scheduled kernel.
    limit : int
        Bytes of the largest buffer.

    Returns
    -------
    tuple
        The kernel, and for each of its former parameters the number that it is now: its windows
        in their order, 1 for what is not split. The kernel is the same object where nothing,
        parameter or workspace, is above the limit.
    """
    shapes = [_windows_of(parameter, limit) for parameter in function.params]
    if not any(shapes) and not _has_large_workspace(function, limit):
        return function, [1] * len(shapes)
    lowered = flattened(tvm.IRModule({"main": function}))["main"]
    splitter = _Splitter(limit)
    parameters: list[tirx.Buffer] = []
    for parameter, parts in zip(lowered.params, shapes, strict=True):
        parameters += [parameter] if parts is None else splitter.windows_of(parameter, parts)
    body = splitter.rewrite(lowered.body)
    split = tirx.PrimFunc(parameters, body, lowered.ret_type, attrs=lowered.attrs)
    return split, [1 if parts is None else len(parts) for parts in shapes]


def _has_large_workspace(function: tirx.PrimFunc, limit: int) -> bool:
    found = False

    def visit(node: Any) -> None:
        nonlocal found
        buffers = [node.buffer] if isinstance(node, tirx.AllocBuffer) else node.alloc_buffers
        found = found or any(_is_large(buffer, limit) for buffer in buffers)

    tvm_ffi.structural_walk(function.body, ((tirx.AllocBuffer, SBlock), visit))
    return found


def _is_large(buffer: tirx.Buffer, limit: int) -> bool:
    return buffer.scope() in ("", "global") and _windows_of(buffer, limit) is not None


class _Splitter:
    """Rewrites the body of one flattened kernel."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # What is known of names must not write their definitions out: memory may have changed.
        self._plain, self._known = tvm.sym.Analyzer(), tvm.sym.Analyzer()
        self._views: dict[Any, _View] = {}
        self._roots: dict[Any, tuple[list[tirx.Buffer], int]] = {}

    def windows_of(self, buffer: tirx.Buffer, shapes: list[tuple[int, ...]]) -> list[tirx.Buffer]:
        """Return new buffers in the place of one; its elements are found in them from now on."""
        parts = [
            tirx.decl_buffer(shape, buffer.dtype, f"{buffer.name}_{i}", scope=buffer.scope())
            for i, shape in enumerate(shapes)
        ]
        self._roots[buffer] = parts, math.prod(shapes[0]) * item_bytes(str(buffer.dtype))
        return parts

    def rewrite(self, body: Stmt) -> Stmt:
        """Return a body over the windows."""
        return tvm_ffi.structural_mutate(
            body,
            [
                (tirx.SeqStmt, self._sequence),
                (tirx.AllocBuffer, self._allocate),
                (tirx.DeclBuffer, self._declare),
                (tirx.Bind, self._bind),
                (tirx.BufferStore, self._store),
                (tvm.ir.TensorLoad, self._load),
                (tvm.ir.Call, self._call),
            ],
        )

    def _sequence(self, sequence: tirx.SeqStmt, mutator: Any) -> Stmt:
        """Keep names that one statement became several of in the scope of those that follow."""
        statements: list[Stmt] = []
        for statement in sequence.seq:
            new = mutator.mutate(statement)
            statements += new.seq if isinstance(new, tirx.SeqStmt) else [new]
        return tirx.SeqStmt(statements)

    def _allocate(self, node: tirx.AllocBuffer, mutator: Any) -> Stmt:
        if not _is_large(node.buffer, self._limit):
            return mutator.default_mutate(node)
        shapes = _windows_of(node.buffer, self._limit)
        assert shapes is not None
        parts = self.windows_of(node.buffer, shapes)
        # Flattened already, so nothing declares a view of one axis any more.
        self._views[node.buffer] = _View(parts, math.prod(shapes[0]))
        return tirx.SeqStmt([tirx.AllocBuffer(part, dict(node.annotations)) for part in parts])

    def _declare(self, node: tirx.DeclBuffer, mutator: Any) -> Stmt:
        source = node.data.args[0] if _is_data(node.data) else None
        if source not in self._roots:
            return mutator.default_mutate(node)
        roots, window_bytes = self._roots[source]
        element = item_bytes(str(node.buffer.dtype))
        parts = []
        for i, root in enumerate(roots):
            held = math.prod(int(e) for e in root.shape) * item_bytes(str(root.dtype))
            name, scope = f"{node.buffer.name}_{i}", node.buffer.scope()
            parts.append(tirx.decl_buffer([held // element], node.buffer.dtype, name, scope=scope))
        self._views[node.buffer] = _View(parts, window_bytes // element)
        self._roots[node.buffer] = parts, window_bytes
        return tirx.SeqStmt(
            [tirx.DeclBuffer(part, data=root.data) for part, root in zip(parts, roots, strict=True)]
        )

    def _bind(self, node: tirx.Bind, mutator: Any) -> Stmt:
        new = mutator.default_mutate(node)
        if isinstance(node.var.ty, tvm.ir.PrimType) and str(node.var.ty.dtype) == "int32":
            self._known.bind(node.var, node.value)
        return new

    def _call(self, node: tvm.ir.Call, mutator: Any) -> Expr:
        if _is_data(node) and node.args[0] in self._roots:
            raise AssertionError(f"{node.args[0].name} is split, and its address is taken")
        return mutator.default_mutate(node)

    def _load(self, node: tvm.ir.TensorLoad, mutator: Any) -> Expr:
        view = self._views.get(node.source)
        if view is None:
            return mutator.default_mutate(node)
        index = self._index(node, mutator)
        scalar, lanes = self._first(index, view)
        if lanes:
            found = [self._read(view, index, index) for index in lanes]
            kind = tvm.DataType(str(node.ty.dtype))
            assert kind.lanes == LANES, f"{node} may lie in two windows"
            return four(found, str(kind.with_lanes(1)))
        return self._read(view, scalar, index)

    @staticmethod
    def _read(view: _View, scalar: Expr, index: Expr) -> Expr:
        return view.choose(
            scalar,
            lambda part, first: tirx.BufferLoad(part, [_shifted(index, first)]),
            tirx.if_then_else,
        )

    def _store(self, node: tirx.BufferStore, mutator: Any) -> Stmt:
        view = self._views.get(node.buffer)
        if view is None:
            return mutator.default_mutate(node)
        index, value = self._index(node, mutator), mutator.mutate(node.value)
        # Computed once, before anyone asks which window takes it.
        name = tirx.Var("value", value.ty)
        scalar, lanes = self._first(index, view)
        if lanes:
            places = [(at, at, tirx.Shuffle([name], [i])) for i, at in enumerate(lanes)]
        else:
            places = [(scalar, index, name)]
        stores = [self._write(view, *place) for place in places]
        return tirx.SeqStmt([tirx.Bind(name, value), *stores])

    @staticmethod
    def _write(view: _View, scalar: Expr, index: Expr, value: Expr) -> Stmt:
        return view.choose(
            scalar,
            lambda part, first: tirx.BufferStore(part, value, [_shifted(index, first)]),
            tirx.IfThenElse,
        )

    def _index(self, access: Any, mutator: Any) -> Expr:
        """Return the index of an access, that of a vector as one ramp."""
        (index,) = (mutator.mutate(index) for index in access.indices)
        return self._plain.simplify(index) if "x" in str(index.ty.dtype) else index

    def _first(self, index: Expr, view: _View) -> tuple[Expr, list[Expr]]:
        """Return the index that decides the window of an access.

        Where lanes may lie in several windows there is no such one: then the index of each lane.
        """
        if not isinstance(index, tirx.Ramp):
            assert "x" not in str(index.ty.dtype), f"lanes of {index} are in no order"
            return index, []
        count, stride = int(index.lanes), index.stride
        adjacent = isinstance(stride, tirx.IntImm) and int(stride) == 1
        if adjacent and view.step % count == 0:
            base = self._known.modular_set(index.base)
            if base.coeff % count == 0 and base.base % count == 0:
                return index.base, []
        return None, [index.base + stride * lane for lane in range(count)]


def _is_data(node: Any) -> bool:
    return isinstance(node, tvm.ir.Call) and getattr(node.op, "name", "") == DATA


def _shifted(index: Expr, first: int) -> Expr:
    """Return an index within a window that begins at element `first`."""
    if not first:
        return index
    if isinstance(index, tirx.Ramp):
        return tirx.Ramp(_shifted(index.base, first), index.stride, index.lanes)
    return index - tirx.const(first, index.ty.dtype)
