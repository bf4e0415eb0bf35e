"""Fragments as registers: what they are loaded with gives the product, by AMD's own layouts.

The lowered statements run here for all threads of a wave, one after the other. The instruction
between them is done by tables that say, apart from the code under test, in which thread and at
which place of its registers an element is (AMD's calculator of matrix instructions, and the
instruction set architectures of RDNA 3 and 4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tvm
from bitfabric.compiler.device_code import NAME as DEVICE_CODE
from bitfabric.compiler.pipeline import tvm_target
from bitfabric.compiler.rocm import codegen
from bitfabric.compiler.rocm.fragments import lower_fragments
from bitfabric.compiler.rocm.views import lower_views
from bitfabric.schedules.gpu.kernel import barrier, launch, shared
from bitfabric.schedules.gpu.matrix_unit import LEFT, RIGHT, SUM, Fragments, multiply
from bitfabric.schedules.gpu.vectors import fours
from bitfabric.targets import MatrixUnit
from bitfabric.targets.rocm import ARCHITECTURES, MODELS, architectures, from_device
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

Place = Callable[[int, int], list[tuple[int, int]]]
"""``place(line, k)``: the threads that hold an element of a factor, and where among theirs."""
WORDS = {"float16": 2, "int8": 4}
"""Elements of a word."""


@dataclass(frozen=True)
class Table:
    """Where an instruction has its operands: of factors by line and depth, of sums by row and
    column."""

    factor: Place
    total: Callable[[int, int], tuple[int, int]]


def split(depth: int, total: Callable[[int, int], tuple[int, int]]) -> Table:
    return Table(lambda line, k: [(line + 16 * (k // depth), k % depth)], total)


MFMA = split(4, lambda i, j: (j + 16 * (i // 4), i % 4))
MFMA_LONG = split(8, lambda i, j: (j + 16 * (i // 4), i % 4))
WMMA_11 = Table(
    lambda line, k: [(line, k), (line + 16, k)], lambda i, j: (j + 16 * (i % 2), i // 2)
)
WMMA_12 = split(8, lambda i, j: (j + 16 * (i // 8), i % 8))
TABLES = {
    ("gfx90a", "float16"): MFMA,
    ("gfx90a", "int8"): MFMA,
    ("gfx942", "float16"): MFMA,
    ("gfx942", "int8"): MFMA_LONG,
    ("gfx1100", "float16"): WMMA_11,
    ("gfx1100", "int8"): WMMA_11,
    ("gfx1200", "float16"): WMMA_12,
    ("gfx1200", "int8"): WMMA_12,
}


class Stop(Exception):
    """The kernels are known."""


def lowered(architecture: str, unit: MatrixUnit, by_row: bool, pitches: tuple[int, ...]) -> Any:
    """Return the statements of a product from shared memory to shared memory."""
    wave = ARCHITECTURES[architecture].wave
    words = [16 * pitches[0], (unit.depth if by_row else 16) * pitches[1], 16 * pitches[2]]
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True, "global_symbol": "product"})
        given, out = (
            T.arg(n, T.buffer([tirx.const(sum(words), "int32")], "int32")) for n in ("given", "out")
        )
        with launch([1], [wave]) as (_, thread):
            memory = shared([sum(words) // 4], "int32x4")
            T.buffer_store(memory, fours(given)[thread], [thread])
            barrier()
            left, right, sums = (Fragments(unit, role, 1) for role in (LEFT, RIGHT, SUM))
            each = WORDS[unit.factors]
            sums.clear()
            left.load(0, memory, 0, pitches[0] * each, by_row=True)
            right.load(0, memory, words[0] // 4, pitches[1] * each, by_row)
            multiply(sums, 0, left, 0, right, 0)
            sums.store(0, memory, (words[0] + words[1]) // 4, pitches[2])
            barrier()
            T.buffer_store(fours(out), memory[thread], [thread])
    seen = []

    def note(module: tvm.IRModule, _names: list[str]) -> Any:
        seen.append(module)
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codegen, "compile_kernels", note)
        device = {"name": "", "architecture": architecture}
        target = tvm_target(from_device(device))
        module = tvm.IRModule({"product": builder.get()})
        with pytest.raises(Exception, match=r"Stop|^$"):
            tvm.compile(module, target=target, tir_pipeline=DEVICE_CODE)
    (function,) = lower_fragments(lower_views(seen[0]), architecture).functions.values()
    return function.body


class Threads:
    """The threads of a wave, which run statements together."""

    def __init__(self, wave: int, memory: np.ndarray, unit: MatrixUnit, table: Table) -> None:
        self.wave, self.memory, self.unit, self.table = wave, memory, unit, table
        self.registers: dict[Any, list[Any]] = {}
        self.products = 0

    def run(self, node: Any) -> None:
        """Run a statement, but for those that touch global memory."""
        kind = type(node).__name__
        if kind == "SeqStmt":
            for each in node.seq:
                self.run(each)
        elif kind in ("AttrStmt", "DeclBuffer", "Evaluate", "AllocBuffer", "Bind"):
            if hasattr(node, "body"):
                self.run(node.body)
        elif kind == "BufferStore":
            self._store(node)
        else:
            raise AssertionError(f"a statement {kind}")

    def _store(self, node: Any) -> None:
        (index,), buffer = node.indices, node.buffer
        if buffer.scope() == "local":
            self.registers[buffer] = self._values(node.value)
        elif buffer.scope() == "shared" and not isinstance(index, tirx.Ramp):
            values = self._values(node.value)
            for place, value in zip(self._values(index), values, strict=True):
                self.memory[int(place)] = value

    def _values(self, node: Any) -> list[Any]:
        """Return an expression's value in each thread."""
        if isinstance(node, tvm.ir.Call) and getattr(node.op, "name", "") == EXTERN:
            name = node.args[0].value
            if name == "fabric_lane":
                return list(range(self.wave))
            assert name == f"fabric_multiply_{self.unit.factors}"
            return self._multiply(*(self._values(each) for each in list(node.args)[1:]))
        parts = [self._values(child) for child in _children(node)]
        return [self._one(node, [part[i] for part in parts], i) for i in range(self.wave)]

    def _one(self, node: Any, values: list[Any], thread: int) -> Any:
        kind = type(node).__name__
        if kind == "IntImm":
            return int(node.value)
        if kind == "FloatImm":
            return np.float32(node.value)
        if kind == "Broadcast":
            return np.array([values[0]] * int(node.lanes))
        if kind == "Ramp":
            return values[0] + np.arange(int(node.lanes))
        if kind == "Shuffle":
            whole = np.concatenate([np.atleast_1d(value) for value in values])
            found = whole[[int(i) for i in node.indices]]
            return found[0] if len(found) == 1 else found
        if kind == "TensorLoad":
            if node.source.scope() == "local":
                return self.registers[node.source][thread]
            return self.memory[values[0]]
        return _OPERATIONS[_name(node)](*values)

    def _multiply(self, left: list[Any], right: list[Any], sums: list[Any]) -> list[Any]:
        """Return what the instruction leaves in each thread."""
        self.products += 1
        unit = self.unit
        a, b = (self._factor(registers) for registers in (left, right))
        product = a @ b.T
        found = [np.array(each) for each in sums]
        for i in range(unit.rows):
            for j in range(unit.columns):
                thread, at = self.table.total(i, j)
                found[thread][at] += product[i, j]
        return found

    def _factor(self, registers: list[Any]) -> np.ndarray:
        """Return a factor's lines, from all the threads that hold them."""
        kind = np.dtype(self.unit.factors)
        held = [np.atleast_1d(each).astype(np.int32).view(kind) for each in registers]
        found = np.zeros((16, self.unit.depth), np.float64)
        for line in range(16):
            for k in range(self.unit.depth):
                values = {float(held[t][at]) for t, at in self.table.factor(line, k)}
                assert len(values) == 1
                found[line, k] = values.pop()
        return found


EXTERN = "tirx.call_pure_extern"


def _word(value: Any) -> Any:
    """Return the bits of a float32 or of an int32 as an int32."""
    word = np.asarray(value)
    return word.astype(np.float32 if word.dtype.kind == "f" else np.int32).view(np.int32)[()]


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "bitwiseand": lambda a, b: a & b,
    "bitwiseor": lambda a, b: a | b,
    "lshift": lambda a, b: np.int64(a) << b,
    "rshift": lambda a, b: np.int64(a) >> b,
    "reinterpret": _word,
}


def _name(node: Any) -> str:
    """Return an operation's name, whichever way it is written."""
    name = node.op.name if isinstance(node, tvm.ir.Call) else type(node).__name__
    return str(name).rpartition(".")[2].replace("_", "").lower()


def _children(node: Any) -> list[Any]:
    kind = type(node).__name__
    if kind in ("IntImm", "FloatImm"):
        return []
    if kind == "Broadcast":
        return [node.value]
    if kind == "Ramp":
        return [node.base]
    if kind == "Shuffle":
        return list(node.vectors)
    if kind == "TensorLoad":
        return [] if node.source.scope() == "local" else list(node.indices)
    return list(node.args) if isinstance(node, tvm.ir.Call) else [node.a, node.b]


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize(("architecture", "factors"), TABLES)
def test_a_product_of_fragments_is_the_product(
    architecture: str, factors: str, by_row: bool
) -> None:
    unit = next(u for u in ARCHITECTURES[architecture].matrices if u.factors == factors)
    random, kind = np.random.default_rng(5), np.dtype(factors)
    a, b = (random.integers(-9, 10, (16, unit.depth)).astype(kind) for _ in "ab")
    rows = [a, b.T if by_row else b, np.zeros((16, 16), "int32")]
    stored = [np.ascontiguousarray(each).view("int32") for each in rows]
    # A vector longer than what they hold, as the kernels have them.
    pitches = tuple(each.shape[1] + 4 for each in stored)
    padded = [np.pad(each, ((0, 0), (0, 4)), constant_values=-1) for each in stored]
    memory = np.concatenate([each.reshape(-1) for each in padded])
    threads = Threads(ARCHITECTURES[architecture].wave, memory, unit, TABLES[architecture, factors])
    threads.run(lowered(architecture, unit, by_row, pitches))
    assert threads.products == 1
    found = memory[-16 * pitches[2] :].reshape(16, -1)[:, :16]
    right = a.astype(np.float64) @ b.astype(np.float64).T
    assert np.array_equal(found.view(unit.result).astype(np.float64), right)


def test_every_unit_of_the_presets_is_tried() -> None:
    presets = [name for target in MODELS for name in architectures(target)]
    assert {(name, u.factors) for name in presets for u in ARCHITECTURES[name].matrices} == set(
        TABLES
    )
