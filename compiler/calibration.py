"""What this machine can do: multiply-adds and 8-bit products on registers, reads, ternary products.

Four small kernels of our own, compiled and timed in about two seconds. Every prediction of time
is scaled by them, and every benchmark prints them.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, te, tirx
from tvm.tirx.script.builder import ir as T

from ..models.kernels import LinearGroup, bitlinear
from ..models.packing import packed_shape
from ..schedules import schedule
from ..schedules.cpu.isa import Isa
from ..schedules.cpu.microkernel import Tile
from ..schedules.tir import bind, build, load, loop
from ..targets import Target

STEPS = 100_000
"""Products of a register tile in one measurement."""
CACHED = 1024
"""Float32 values that the first-level cache holds."""
WORDS = 1 << 26
"""Float32 values read in one measurement, more than any cache holds."""
PIECE = 1 << 19
"""Float32 values read between two meetings of the threads: 2 MiB, a matrix of a token's work."""
WIDTH = 2048
"""Columns of the ternary matrices; their rows are as many as fill a piece."""


@dataclass(frozen=True)
class Calibration:
    """The speed of all threads together.

    Attributes
    ----------
    float32 : float
        Multiply and add operations a second.
    int8 : float
        The same of 8-bit products summed in 32 bits.
    read : float
        Bytes a second read from memory beyond the caches.
    ternary : float
        Bytes a second of packed weights, multiplied by one token as writing text does.
    """

    float32: float
    int8: float
    read: float
    ternary: float


def compiled(function: tirx.PrimFunc, target: Target) -> Callable[..., None]:
    """Return a scheduled kernel as a callable over runtime tensors."""
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    return tvm.compile(module, target=tvm.target.Target(target.options))["main"]


def best(kernel: Callable[..., None], arguments: Sequence[Any], seconds: float) -> float:
    """Return the shortest time of a call, in seconds, repeating it for some seconds."""
    return min(timed(kernel, arguments, seconds))


def timed(kernel: Callable[..., None], arguments: Sequence[Any], seconds: float) -> list[float]:
    """Return the time of each call, in seconds, repeating it for some seconds."""
    end = time.perf_counter() + seconds
    times: list[float] = []
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        kernel(*arguments)
        times.append(time.perf_counter() - start)
    return times


class Calibrator:
    """The compiled kernels, to measure with as often as wanted.

    Parameters
    ----------
    target : Target
        The instructions to use.
    threads : int, optional
        Threads at work; all processors by default.
    """

    def __init__(self, target: Target, threads: int | None = None) -> None:
        threads = threads or os.cpu_count() or 1
        # TVM's pool reads it as it starts, and takes half of the processors where it is not set.
        os.environ.setdefault("TVM_NUM_THREADS", str(threads))
        isa = Isa(target)
        lanes, (height, width) = isa.lanes, isa.tile
        tile = 2.0 * height * width * lanes * STEPS * threads
        # TVM's own memory is aligned as its vector loads need it.
        memory = np.from_dlpack(tvm.runtime.tensor(np.full(WORDS, 0.5, "float32")))
        # Registers are fast whenever nobody interrupts; memory is shared: its usual speed counts.
        self._probes: list[tuple[Callable[[], None], float, Callable[[list[float]], float]]] = []
        self._probes.append((_ternary(target, memory), 4.0 * WORDS, statistics.median))
        for body, length, operations, typical in (
            (_read, WORDS, 4.0 * WORDS, statistics.median),
            (_dot, threads * lanes, tile * isa.dot.columns, min),
            (_multiply, threads * lanes, tile, min),
        ):
            kernel = compiled(_kernel(isa, threads, length, body), target)
            output = tvm.runtime.tensor(np.zeros(threads * lanes, "float32"))
            call = partial(kernel, tvm_ffi.from_dlpack(memory[:length]), output)
            self._probes.append((call, operations, typical))

    def measure(self, seconds: float = 0.5) -> Calibration:
        """Return the machine's speed now, each kernel run for some seconds."""
        speeds = [
            operations / typical(timed(call, (), seconds))
            for call, operations, typical in self._probes
        ]
        return Calibration(*reversed(speeds))


def calibrate(target: Target, threads: int | None = None, seconds: float = 0.5) -> Calibration:
    """Measure the machine with a target's instructions, each kernel for some seconds."""
    return Calibrator(target, threads).measure(seconds)


def _kernel(isa: Isa, threads: int, length: int, body: Callable[..., None]) -> tirx.PrimFunc:
    """Return a kernel of ``x (length,)`` and ``y (threads * lanes,)`` float32."""
    x = te.placeholder((length,), "float32")
    signature = te.create_prim_func([x, te.compute((threads * isa.lanes,), lambda i: x[i])])

    return build(signature, lambda x, y: body(isa, threads, x, y))


def _multiply(isa: Isa, threads: int, x: Any, y: Any) -> None:
    with loop(threads, parallel=True) as thread:
        _multiply_on(isa, thread, x, y)


def _multiply_on(isa: Isa, thread: Any, x: Any, y: Any) -> None:
    lanes, (height, width) = isa.lanes, isa.tile
    sums = Tile(height, width, lanes)
    factor = bind(load(x, thread * lanes, lanes=lanes))
    sums.fill(lambda i, v: factor)
    with loop(STEPS):
        for i, v in sums:
            sums[i, v] = sums[i, v] * factor + factor
    _keep(sums, thread, y)


def _dot(isa: Isa, threads: int, x: Any, y: Any) -> None:
    with loop(threads, parallel=True) as thread:
        _dot_on(isa, thread, x, y)


def _dot_on(isa: Isa, thread: Any, x: Any, y: Any) -> None:
    lanes, dot = isa.lanes, isa.dot
    height, width = dot.tile
    sums = Tile(height, width, lanes, dot.sum_dtype)
    sums.fill()
    with loop(STEPS // 4) as step:
        # From the first-level cache and different in each step, or a product could be shared.
        first = bind(step % (CACHED // 2))
        for v in range(width):
            places = [first + (4 * v + s) * lanes for s in range(4)]
            vectors = [load(x, place, lanes=lanes) for place in places]
            codes = [bind(T.reinterpret(f"{dot.dtype}x{lanes}", vector)) for vector in vectors]
            for i in range(height):
                words = [T.reinterpret(dot.dtype, x[first + 4 * i + s]) for s in range(4)]
                sums[i, v] = dot.accumulate(sums[i, v], codes, words)
    _keep(sums, thread, y)


def _read(isa: Isa, threads: int, x: Any, y: Any) -> None:
    """Read as decoding does: matrix by matrix, the threads meeting after each."""
    lanes, vectors = isa.lanes, 8
    share = PIECE // threads // (vectors * lanes)
    with loop(WORDS // PIECE) as piece, loop(threads, parallel=True) as thread:
        sums = Tile(1, vectors, lanes)
        sums.fill()
        with loop(share) as i:
            for _, v in sums:
                place = piece * PIECE + ((thread * share + i) * vectors + v) * lanes
                sums[0, v] = sums[0, v] + load(x, place, lanes=lanes)
        _keep(sums, thread, y)


def _ternary(target: Target, memory: np.ndarray) -> Callable[[], None]:
    """Return a call that multiplies one token by all of a memory, taken for packed matrices."""
    rows = 16 * PIECE // WIDTH
    group = LinearGroup("probe", ("probe",), WIDTH, (rows,), (False,))
    builder = relax.BlockBuilder()
    shapes = ((1, WIDTH), "float32"), (packed_shape(rows, WIDTH), "int32"), ((1,), "float32")
    x, packed, scale = (relax.Var("v", relax.TensorType(*shape)) for shape in shapes)
    with builder.function("main", [x, packed, scale]):
        builder.emit_func_output(bitlinear(builder, x, packed, scale, group))
    (function,) = (f for f in builder.get().functions.values() if isinstance(f, tirx.PrimFunc))
    kernel = compiled(schedule(function, target)[1], target)
    words = memory.view("int32").reshape(-1, *packed_shape(rows, WIDTH))
    matrices = [tvm_ffi.from_dlpack(matrix) for matrix in words]
    token = tvm.runtime.tensor(np.full((1, WIDTH), 0.5, "float32"))
    one, out = (tvm.runtime.tensor(np.ones(n, "float32")) for n in ((1,), (1, rows)))

    def every() -> None:
        for matrix in matrices:
            kernel(token, matrix, one, out)

    return every


def _keep(sums: Tile, thread: Any, y: Any) -> None:
    """Store every register of a tile, so that none is computed in vain and dropped."""
    lanes = sums.lanes
    sums.store(
        lambda i, v: (y, thread * lanes),
        lambda value, i, v: (
            tirx.Cast(f"float32x{lanes}", value) + load(y, thread * lanes, lanes=lanes)
        ),
    )
