"""Speed of the processor kernels as fractions of what this machine can do at most.

Run as ``python bench/kernels.py [--target cpu] [--threads 2] [--model 125M]``. The calibration,
multiply-adds on registers and a read of memory, runs in the same process before and after the
kernels; a kernel's time is the best of many short repeats, since others may use the machine.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

TOKENS, RANK = 128, 16
SIZES = {  # hidden, intermediate, key and value rows, vocabulary
    "125M": (768, 3072, 768, 32000),
    "1B": (2048, 5632, 512, 32002),
}


@dataclass
class Case:
    """One kernel with its arguments and the work it does."""

    name: str
    emit: Callable
    arrays: list[np.ndarray]
    outputs: list[tuple[int, ...]]
    operations: float
    unit: str  # "float", "int8" or "bytes": what bounds it, and so what it is compared with


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--model", choices=sorted(SIZES), action="append")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each kernel")
    return parser.parse_args()


ARGUMENTS = parse()
os.environ["TVM_NUM_THREADS"] = str(ARGUMENTS.threads)

import tvm  # noqa: E402  the thread pool reads the environment as it starts
from bitfabric.compiler.calibration import best, calibrate, compiled  # noqa: E402
from bitfabric.models.kernels import LinearGroup, bitlinear, head_loss, logits  # noqa: E402
from bitfabric.models.kernels.bitlinear_vjp import bitlinear_vjp  # noqa: E402
from bitfabric.schedules import schedule  # noqa: E402
from bitfabric.targets import Target, get_target  # noqa: E402
from tvm import relax, tirx  # noqa: E402


def _linear_cases(name: str, inputs: int, outputs: Sequence[int]) -> Iterator[Case]:
    """Yield the forward pass, one token of it, and the adjoint of a group of projections."""
    rows, count = sum(outputs), len(outputs)
    group = LinearGroup(name, ("a", "b", "c")[:count], inputs, tuple(outputs), (True,) * count)
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype("float32")

    # Any bits do for the speed; codes are 0, 1, 2, so clear the upper bit of each pair.
    packed = rng.integers(0, 2**31, (rows // 16, inputs // 16, 16)).astype("int32") & 0x55555555
    weights = [packed, normal(count)]
    lora = [normal(count, RANK, inputs), normal(RANK, rows)]

    def forward(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        return bitlinear(bb, *v[:3], group, tuple(v[3:]) or None, 2.0)

    def backward(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        return bitlinear_vjp(bb, *v[:4], group.parameters(2.0), tuple(v[4:]))

    x, dy, product = normal(TOKENS, inputs), normal(TOKENS, rows), 2.0 * rows * inputs
    thin = 2.0 * TOKENS * RANK * (count * inputs + rows)
    yield Case(
        f"bitlinear {name}", forward, [x, *weights], [(TOKENS, rows)], TOKENS * product, "int8"
    )
    yield Case(
        f"bitlinear {name} + LoRA",
        forward,
        [x, *weights, *lora],
        [(TOKENS, rows)],
        TOKENS * product,
        "int8",
    )
    yield Case(
        f"bitlinear {name} + LoRA, 1 token",
        forward,
        [x[:1], *weights, *lora],
        [(1, rows)],
        float(packed.nbytes + sum(a.nbytes for a in lora)),
        "bytes",
    )
    yield Case(
        f"bitlinear_vjp {name}", backward, [dy, x, *weights], [x.shape], TOKENS * product, "float"
    )
    yield Case(
        f"bitlinear_vjp {name} + LoRA",
        backward,
        [dy, x, *weights, *lora],
        [x.shape, *(a.shape for a in lora)],
        TOKENS * product + 2 * thin + 2.0 * TOKENS * RANK * count * inputs,
        "float",
    )


def _head_cases(columns: int, rows: int) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    h = rng.standard_normal((TOKENS, columns)).astype("float32")
    table = rng.integers(-127, 128, (rows, columns)).astype("int8")
    scale = np.full(rows, 1e-4, "float32")
    labels = rng.integers(0, rows, TOKENS).astype("int32")
    count = np.ones(1, "float32")

    def loss(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        h, table, labels, scale, *count = v
        return head_loss(bb, h, table, scale, labels, count[0] if count else None)

    product, arrays = 2.0 * TOKENS * columns * rows, [h, table, labels, scale]
    shapes = [(TOKENS,), h.shape]
    yield Case("head_loss", loss, [*arrays, count], shapes, 2 * product, "float")
    yield Case("head_loss_forward", loss, arrays, shapes[:1], product, "float")
    yield Case("logits, 1 token", logits, [h[:1], table, scale], [(1, rows)], table.nbytes, "bytes")


def cases(model: str) -> Iterator[Case]:
    """Yield every kernel at a model's sizes."""
    hidden, intermediate, keys, vocabulary = SIZES[model]
    yield from _linear_cases("qkv", hidden, (hidden, keys, keys))
    yield from _linear_cases("gate_up", hidden, (intermediate, intermediate))
    yield from _linear_cases("down", intermediate, (hidden,))
    yield from _head_cases(hidden, vocabulary)


def measure(case: Case, target: Target, seconds: float) -> float:
    """Return the shortest time of a kernel in seconds."""
    bb = relax.BlockBuilder()
    variables = [
        relax.Var(f"v{i}", relax.TensorType(a.shape, str(a.dtype)))
        for i, a in enumerate(case.arrays)
    ]
    with bb.function("main", variables):
        with bb.dataflow():
            out = bb.emit_output(case.emit(bb, *variables))
        bb.emit_func_output(out)
    (function,) = (f for f in bb.get().functions.values() if isinstance(f, tirx.PrimFunc))
    kernel = compiled(schedule(function, target)[1], target)
    tensors = [tvm.runtime.tensor(a) for a in case.arrays]
    tensors += [tvm.runtime.tensor(np.zeros(shape, "float32")) for shape in case.outputs]
    return best(kernel, tensors, seconds)


def main() -> None:
    """Print the calibration and a row for each kernel."""
    target = get_target(ARGUMENTS.target)

    def calibration() -> dict[str, float]:
        speed = calibrate(target, ARGUMENTS.threads)
        print(
            f"{target.name}, {ARGUMENTS.threads} threads: {speed.float32 / 1e9:.0f} GFLOP/s, "
            f"{speed.int8 / 1e9:.0f} int8 GOP/s, {speed.read / 1e9:.1f} GB/s read"
        )
        return {"float": speed.float32, "int8": speed.int8, "bytes": speed.read}

    peak = calibration()
    for model in ARGUMENTS.model or sorted(SIZES):
        print(f"{model}, {TOKENS} tokens, rank {RANK}")
        for case in cases(model):
            seconds = measure(case, target, ARGUMENTS.seconds)
            rate = case.operations / seconds
            unit = {"float": "GFLOP/s", "int8": "GOP/s", "bytes": "GB/s"}[case.unit]
            print(
                f"  {case.name:36} {seconds * 1e3:9.3f} ms {rate / 1e9:7.0f} {unit:7} "
                f"{100 * rate / peak[case.unit]:4.0f} % of peak",
                flush=True,
            )
    calibration()


if __name__ == "__main__":
    main()
