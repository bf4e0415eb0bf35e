"""What a machine can do at most: multiply-adds on registers, 8-bit products, reads of memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from bitfabric.schedules.cpu.isa import Isa
from bitfabric.schedules.cpu.microkernel import Tile, bind, build, load, loop
from bitfabric.targets import Target
from tvm import te, tirx
from tvm.tirx.script.builder import ir as T

STEPS = 100_000
"""Products of a register tile in one measurement."""
CACHED = 1024
"""Float32 values that the first-level cache holds."""
WORDS = 1 << 26
"""Float32 values read in one measurement, more than any cache holds."""


def compiled(function: tirx.PrimFunc, target: Target) -> Callable[..., None]:
    """Return a scheduled kernel as a callable over runtime tensors."""
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    return tvm.compile(module, target=tvm.target.Target(target.options))["main"]


def best(kernel: Callable[..., None], arguments: Sequence[Any], seconds: float) -> float:
    """Return the shortest time of a call, in seconds, repeating it for some seconds."""
    end, shortest = time.perf_counter() + seconds, float("inf")
    while True:
        start = time.perf_counter()
        kernel(*arguments)
        stop = time.perf_counter()
        shortest = min(shortest, stop - start)
        if stop > end:
            return shortest


def calibrate(target: Target, threads: int, seconds: float) -> dict[str, float]:
    """Return float and int8 operations a second and bytes read a second, of all threads."""
    isa = Isa(target)
    lanes, (height, width), (dot_height, dot_width) = isa.lanes, isa.tile, isa.dot.tile
    lane_steps = 2.0 * lanes * STEPS * threads
    dot_operations = lane_steps * dot_height * dot_width * 16 // isa.dot.steps
    rows = {
        "float": (_multiply, threads * lanes, lane_steps * height * width),
        "int8": (_dot, CACHED, dot_operations),
        "bytes": (_read, WORDS, 4.0 * WORDS),
    }
    found = {}
    for name, (body, length, operations) in rows.items():
        kernel = compiled(_kernel(isa, threads, length, body), target)
        sizes = (length, threads * lanes)
        arguments = [tvm.runtime.tensor(np.full(n, 0.5, "float32")) for n in sizes]
        found[name] = operations / best(kernel, arguments, seconds)
    return found


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
        lambda value, i, v: tirx.Cast(f"float32x{lanes}", value)
        + load(y, thread * lanes, lanes=lanes),
    )
