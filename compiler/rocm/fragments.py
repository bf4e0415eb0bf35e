"""Fragments of matrices become vectors in registers, their operations loads, products and stores.

See :mod:`matrices` for which thread holds what. A fragment's buffer is one vector for each
fragment, addressed by numbers alone, so that LLVM keeps it in registers. Shared memory is of words
here, as :mod:`views` leaves it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets.rocm import ARCHITECTURES
from ..operators import operator
from .kernels import Handlers, Node, rewritten
from .matrices import BYTES, LINES, SUMS, Unit, units

LANE = "fabric_lane"
"""The function of the thread's number in its wave."""
MOST, WORD = 4, 4
"""Words of the widest load, and bytes of a word."""
_ALONG = {("wmma.matrix_a", "row_major"), ("wmma.matrix_b", "col_major")}
_SUM = "wmma.accumulator"


def lower_fragments(module: tvm.IRModule, architecture: str) -> tvm.IRModule:
    """Return kernels whose fragments are vectors in the registers of an architecture."""
    return rewritten(module, lambda function: _Registers(architecture).handlers())


class _Registers:
    """Rewrites one kernel."""

    def __init__(self, architecture: str) -> None:
        self._units, self._wave = units(architecture), ARCHITECTURES[architecture].wave
        self._buffers: dict[Node, tuple[Node, str, Unit]] = {}
        self._known: dict[str, Callable[[list[Node]], Node]] = {
            "tirx.tvm_fill_fragment": self._fill,
            "tirx.tvm_load_matrix_sync": self._load,
            "tirx.tvm_mma_sync": self._multiply,
            "tirx.tvm_store_matrix_sync": self._store,
        }

    def handlers(self) -> Handlers:
        """Return what rewrites the kernel."""
        return [(tirx.AllocBuffer, self._allocate), (tirx.Evaluate, self._operation)]

    def _allocate(self, node: tirx.AllocBuffer, mutator: Any) -> Node:
        old, role = node.buffer, node.buffer.scope()
        if not role.startswith("wmma."):
            return mutator.default_mutate(node)
        dtype = str(old.dtype)
        if role == _SUM:
            unit = next(u for u in self._units.values() if SUMS[u.factors] == dtype)
            size, vector = LINES * LINES, unit.sum_type
        else:
            unit = self._units[dtype]
            size, vector = unit.elements(self._wave), unit.factor_type
        new = tirx.decl_buffer([int(old.shape[0]) // size], vector, old.name, scope="local")
        self._buffers[old] = new, role, unit
        return tirx.AllocBuffer(new, dict(node.annotations))

    def _of(self, data: Node) -> tuple[Node, str, Unit]:
        return self._buffers[data.args[0]]

    def _operation(self, node: tirx.Evaluate, mutator: Any) -> Node:
        known = self._known.get(operator(node.value))
        if known is None:
            return mutator.default_mutate(node)
        return known(list(node.value.args))

    def _fill(self, arguments: list[Node]) -> Node:
        data, *_, index, value = arguments
        buffer, _, unit = self._of(data)
        element = tirx.const(value.value, SUMS[unit.factors])
        return tirx.BufferStore(buffer, T.broadcast(element, unit.sums), [index])

    def _load(self, arguments: list[Node]) -> Node:
        data, *_, index, place, stride, by = arguments
        buffer, role, unit = self._of(data)
        memory, begin = _memory(place)
        line, part = _lane()
        depth = unit.depth if unit.split else 0
        if (role, by.value) in _ALONG:
            each = WORD // BYTES[unit.factors]
            words = line * (int(stride) // each) + part * (depth // each)
            value = _along(unit, memory, begin + words)
        else:
            value = _across(unit, memory, begin, line + part * (depth * int(stride)), int(stride))
        return tirx.BufferStore(buffer, value, [index])

    def _multiply(self, arguments: list[Node]) -> Node:
        (sums, _, unit), (left, *_), (right, *_) = (self._of(arguments[i]) for i in (0, 2, 4))
        operands = [left[arguments[3]], right[arguments[5]], sums[arguments[7]]]
        value = T.call_pure_extern(str(sums.dtype), f"fabric_multiply_{unit.factors}", *operands)
        return tirx.BufferStore(sums, value, [arguments[1]])

    def _store(self, arguments: list[Node]) -> Node:
        data, *_, index, place, stride, _by = arguments
        buffer, _, unit = self._of(data)
        memory, begin = _memory(place)
        line, part = _lane()
        stores = []
        for j in range(unit.sums):
            row = part * unit.apart + j * unit.step
            word = T.reinterpret("int32", tirx.Shuffle([buffer[index]], [j]))
            stores.append(tirx.BufferStore(memory, word, [begin + (row * stride + line)]))
        return tirx.SeqStmt(stores)


def _lane() -> tuple[Node, Node]:
    """Return the line that a thread holds of a fragment, and which 16 threads it is of."""
    lane = T.call_pure_extern("int32", LANE)
    return lane & (LINES - 1), tirx.shift_right(lane, tirx.const(4, "int32"))


def _memory(place: Node) -> tuple[Node, Node]:
    """Return the words of shared memory that an address lies in, and which of them it is."""
    (access,) = place.args
    (index,) = access.indices
    assert str(access.source.dtype) == "int32", "a fragment's memory is of words"
    return access.source, index.base if isinstance(index, tirx.Ramp) else index


def _along(unit: Unit, memory: Node, first: Node) -> Node:
    """Return elements that lie side by side, by loads of vectors of words."""
    width = min(unit.words, MOST)
    loads = []
    for word in range(0, unit.words, width):
        at = first + word
        loads.append(memory[at if width == 1 else tirx.Ramp(at, tirx.const(1, "int32"), width)])
    return loads[0] if len(loads) == 1 else tirx.Shuffle(loads, list(range(unit.words)))


def _across(unit: Unit, memory: Node, begin: Node, first: Node, stride: int) -> Node:
    """Return elements of different rows, put together in words; `first` counts elements."""
    each, bits = WORD // BYTES[unit.factors], 8 * BYTES[unit.factors]
    assert stride % each == 0, "rows begin with a word"
    shift = tirx.const(each.bit_length() - 1, "int32")
    inside = (first & (each - 1)) * bits
    words = []
    for row in range(0, unit.depth, each):
        whole = tirx.const(0, "int32")
        for j in range(each):
            word = memory[begin + tirx.shift_right(first, shift) + (row + j) * (stride // each)]
            element = tirx.shift_right(word, inside) & ((1 << bits) - 1)
            whole = whole | tirx.shift_left(element, tirx.const(bits * j, "int32"))
        words.append(whole)
    return words[0] if len(words) == 1 else tirx.Shuffle(words, list(range(len(words))))
