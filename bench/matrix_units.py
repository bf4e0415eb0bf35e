"""Speed of the products on matrix units, beside torch's own matrix products on the same device.

Run as ``python bench/matrix_units.py [--target vulkan-nvidia] [--tokens 128 512 4096]``. The
ternary product takes float32 and 2-bit weights: "product" is its largest launch, unpacking and
scales included, "whole" is all of it, with the rounding of its input to 8 bits or scaled 16. Times
are medians by the device's clock; torch's, where it is installed with CUDA, are by its events.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
import tvm
from bitfabric.compiler.device_code import NAME as DEVICE_CODE
from bitfabric.models.kernels import LinearGroup, bitlinear
from bitfabric.models.kernels.bitlinear_vjp import bitlinear_vjp
from bitfabric.runtime.backends import backend_function, load_backend
from bitfabric.schedules import schedule
from bitfabric.targets import Target, get_target
from bitfabric.targets.ffi import tvm_ffi
from tvm import relax, tirx

SHAPES = ((3072, 2048), (11264, 2048), (2048, 5632))
"""Rows and columns of a 1B model's projections."""
ROUNDS = 20


def kernel(emit: Callable, arrays: list[np.ndarray], target: Target) -> Callable[..., None]:
    """Return the compiled kernel that ``emit(bb, *variables)`` emits for such arrays."""
    bb = relax.BlockBuilder()
    variables = [
        relax.Var(f"v{i}", relax.TensorType(a.shape, str(a.dtype))) for i, a in enumerate(arrays)
    ]
    with bb.function("main", variables):
        with bb.dataflow():
            out = bb.emit_output(emit(bb, *variables))
        bb.emit_func_output(out)
    (function,) = (f for f in bb.get().functions.values() if isinstance(f, tirx.PrimFunc))
    _, function = schedule(function, target)
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    options = tvm.target.Target(target.options, host="llvm")
    return tvm.compile(module, target=options, tir_pipeline=DEVICE_CODE)["main"]


def cases(tokens: int, rows: int, columns: int) -> Iterator[tuple[str, Callable, list, tuple]]:
    """Yield the name, the emitter, the inputs and the output's shape of both products."""
    group = LinearGroup("x", ("a",), columns, (rows,), (False,))
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 2**31, (rows // 16, columns // 16, 16)).astype("int32") & 0x55555555
    x, dy = (rng.standard_normal((tokens, n)).astype("float32") for n in (columns, rows))
    weights = [packed, np.ones(1, "float32")]

    def forward(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        return bitlinear(bb, *v, group, None, 1.0)

    def backward(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        return bitlinear_vjp(bb, *v, group.parameters(1.0), ())

    yield "int8, forward", forward, [x, *weights], (tokens, rows)
    yield "float16, adjoint", backward, [dy, x, *weights], (tokens, columns)


def launches(run: Callable[..., None], tensors: list, kind: str) -> list[float]:
    """Return the median seconds of each launch of a kernel."""
    run(*tensors)
    record = backend_function(f"bitfabric.{kind}.recorder")(0)
    replay = record(tvm_ffi.convert(lambda: run(*tensors)), tvm_ffi.convert(lambda _: None))
    rounds = [[each for _, each in json.loads(replay(True))] for _ in range(ROUNDS)]
    return [median(times) * 1e-9 for times in zip(*rounds[2:], strict=True)]


def torch_seconds(tokens: int, rows: int, columns: int) -> dict[str, float]:
    """Return the time of torch's products of matrices of these sizes; empty without CUDA."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    a = torch.randn(tokens, columns, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(columns, rows, device="cuda", dtype=torch.bfloat16)
    left = torch.ones(tokens, columns, device="cuda", dtype=torch.int8)
    right = torch.ones(rows, columns, device="cuda", dtype=torch.int8).t()
    found = {}
    works = {"torch int8": lambda: torch._int_mm(left, right), "torch bf16": lambda: a @ b}
    for name, work in works.items():
        times = []
        for _ in range(ROUNDS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(5):
                work()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 5e3)
        found[name] = median(times[2:])
    return found


def main() -> None:
    """Print a row for each product."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="vulkan-nvidia")
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512, 4096])
    arguments = parser.parse_args()
    target = get_target(arguments.target)
    load_backend(target.device)
    device = tvm.runtime.device(target.device, 0)
    heads = "".join(f"{head:>{width}}" for head, width in (("us", 11), ("T/s", 7)) * 2)
    print(f"{'tokens x rows x columns':46}{heads}   product, then whole")
    for tokens in arguments.tokens:
        for rows, columns in SHAPES:
            work, size = 2e-12 * tokens * rows * columns, f"{tokens} x {rows} x {columns}"
            for name, emit, arrays, shape in cases(tokens, rows, columns):
                zeros = np.zeros(shape, "float32")
                tensors = [tvm.runtime.tensor(a, device) for a in (*arrays, zeros)]
                times = launches(kernel(emit, arrays, target), tensors, target.device)
                largest, whole = max(times), sum(times)
                print(
                    f"{size:26}{name:20}{largest * 1e6:11.1f}{work / largest:7.0f}"
                    f"{whole * 1e6:11.1f}{work / whole:7.0f}",
                    flush=True,
                )
            for name, seconds in torch_seconds(tokens, rows, columns).items():
                print(f"{size:26}{name:20}{seconds * 1e6:11.1f}{work / seconds:7.0f}")


if __name__ == "__main__":
    main()
