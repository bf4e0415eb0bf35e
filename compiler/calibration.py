"""What this machine can do at most: multiply-adds on registers, 8-bit products, reads of memory.

Three small kernels of our own, compiled and timed in about two seconds. Every prediction of time
is scaled by them, and every benchmark prints them.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import te, tirx
from tvm.tirx.script.builder import ir as T

from ..schedules.cpu.isa import Isa
from ..schedules.cpu.microkernel import Tile, bind, build, load, loop
from ..targets import Target

STEPS = 100_000
"""Products of a register tile in one measurement."""
CACHED = 1024
"""Float32 values that the first-level cache holds."""
WORDS = 1 << 26
"""Float32 values read in one measurement, more than any cache holds."""


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
    """

    float32: float
    int8: float
    read: float


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


def calibrate(target: Target, threads: int | None = None, seconds: float = 0.5) -> Calibration:
    """Measure the machine with a target's instructions, each kernel for some seconds."""
    threads = threads or os.cpu_count() or 1
    # TVM's pool reads it as it starts, and takes half of the processors where it is not set.
    os.environ.setdefault("TVM_NUM_THREADS", str(threads))
    isa = Isa(target)
    lanes, (height, width) = isa.lanes, isa.tile
    tile = 2.0 * height * width * lanes * STEPS * threads
    found = []
    # Registers are fast whenever nobody interrupts; memory is shared, so its usual speed counts.
    for body, length, operations, typical in (
        (_multiply, threads * lanes, tile, min),
        (_dot, threads * lanes, tile * (16 // isa.dot.steps), min),
        (_read, WORDS, 4.0 * WORDS, statistics.median),
    ):
        kernel = compiled(_kernel(isa, threads, length, body), target)
        sizes = (length, threads * lanes)
        arguments = [tvm.runtime.tensor(np.full(n, 0.5, "float32")) for n in sizes]
        found.append(operations / typical(timed(kernel, arguments, seconds)[1:]))
    return Calibration(*found)


def _kernel(isa: Isa, threads: int, length: int, body: Callable[..., None]) -> tirx.PrimFunc:
    """Return a kernel of ``x (length,)`` and ``y (threads * lanes,)`` float32."""
    x = te.placeholder((length,), "float32")
    signature = te.create_prim_func([x, te.compute((threads * isa.lanes,), lambda i: x[i])])

    def emit(x: tirx.Var, y: tirx.Var) -> None:
        with loop(threads, parallel=True) as thread:
            body(isa, threads, thread, x, y)

    return build(signature, emit)


def _multiply(isa: Isa, threads: int, thread: Any, x: Any, y: Any) -> None:
    lanes, (height, width) = isa.lanes, isa.tile
    sums = Tile(height, width, lanes)
    factor = bind(load(x, thread * lanes, lanes=lanes))
    sums.fill(lambda i, v: factor)
    with loop(STEPS):
        for i, v in sums:
            sums[i, v] = sums[i, v] * factor + factor
    _keep(sums, thread, y)


def _dot(isa: Isa, threads: int, thread: Any, x: Any, y: Any) -> None:
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


def _read(isa: Isa, threads: int, thread: Any, x: Any, y: Any) -> None:
    lanes, vectors = isa.lanes, 8
    share = WORDS // threads // (vectors * lanes)
    sums = Tile(1, vectors, lanes)
    sums.fill()
    with loop(share) as i:
        for _, v in sums:
            place = ((thread * share + i) * vectors + v) * lanes
            sums[0, v] = sums[0, v] + load(x, place, lanes=lanes)
    _keep(sums, thread, y)


def _keep(sums: Tile, thread: Any, y: Any) -> None:
    """Store every register of a tile, so that none is computed in vain and dropped."""
    lanes = sums.lanes
    sums.store(
        lambda i, v: (y, thread * lanes),
        lambda value, i, v: (
            tirx.Cast(f"float32x{lanes}", value) + load(y, thread * lanes, lanes=lanes)
        ),
    )
