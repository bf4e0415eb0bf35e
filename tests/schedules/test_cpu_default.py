"""The default rule takes any kernel and leaves its meaning; large ones get threads and vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from bitfabric.models.kernels import AttentionShape, attention, rms_norm, rope_table
from bitfabric.schedules.cpu.default import default
from bitfabric.targets.cpu import host_cpu
from tvm import relax, tirx

from .kernel_harness import prim_func, run

F32, I32 = "float32", "int32"
TARGET = host_cpu()
Emit = Callable[..., relax.Expr]


def _module(emit: Emit, types: list[tuple[list, str]]) -> tvm.IRModule:
    """Return the program after the passes that make kernels of operators and fuse them."""
    bb = relax.BlockBuilder()
    v = [relax.Var(f"v{i}", relax.TensorType(s, t)) for i, (s, t) in enumerate(types)]
    with bb.function("main", v):
        with bb.dataflow():
            out = bb.emit_output(emit(bb, *v))
        bb.emit_func_output(out)
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ]
    return tvm.ir.transform.Sequential(passes)(bb.get())


def _laid_out(module: tvm.IRModule) -> tvm.IRModule:
    module = tvm.IRModule(module.functions)
    for name, function in list(module.functions.items()):
        if isinstance(function, tirx.PrimFunc):
            scheduled = default(function, {}, TARGET)
            assert scheduled is not None
            module[name] = scheduled
    return module


def _run(module: tvm.IRModule, arrays: list[np.ndarray]) -> np.ndarray:
    target = tvm.target.Target(TARGET.options)
    machine = relax.VirtualMachine(tvm.compile(module, target=target), tvm.cpu())
    return machine["main"](*[tvm.runtime.tensor(a) for a in arrays]).numpy()


def _adds_split_and_joins(bb: relax.BlockBuilder, x: relax.Var, y: relax.Var) -> relax.Expr:
    total = bb.emit(relax.op.add(relax.op.multiply(x, y), y))
    parts = bb.emit(relax.op.split(total, 2, axis=1))
    left, right = (bb.emit(relax.TupleGetItem(parts, i)) for i in range(2))
    return relax.op.concat([relax.op.exp(right), left], axis=1)


def _reshapes(bb: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    return relax.op.permute_dims(relax.op.reshape(x, (48, 400, 4)), [1, 0, 2])


def _takes(bb: relax.BlockBuilder, x: relax.Var, index: relax.Var) -> relax.Expr:
    return relax.op.take(x, index, axis=0)


def _normalises(bb: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    return relax.op.nn.softmax(relax.op.subtract(x, relax.op.mean(x, axis=1, keepdims=True)))


CASES: dict[str, tuple[Emit, list[list[int]]]] = {
    "adds, splits and joins": (_adds_split_and_joins, [[150, 512]] * 2),
    "odd columns": (_adds_split_and_joins, [[300, 334]] * 2),
    "small": (_adds_split_and_joins, [[3, 6]] * 2),
    "reshapes": (_reshapes, [[300, 256]]),
    "reduces": (_normalises, [[200, 400]]),
    "one axis": (lambda bb, x: relax.op.add(x, x), [[100_003]]),
    "scalar": (lambda bb, x: relax.op.add(x, x), [[]]),
}


@pytest.mark.parametrize("case", CASES)
def test_operators_keep_their_meaning(case: str) -> None:
    emit, shapes = CASES[case]
    rng = np.random.default_rng(0)
    arrays = [np.asarray(rng.standard_normal(s), F32) for s in shapes]
    module = _module(emit, [(s, F32) for s in shapes])
    np.testing.assert_allclose(
        _run(_laid_out(module), arrays), _run(module, arrays), rtol=1e-5, atol=1e-6
    )


def test_symbolic_rows() -> None:
    n = tirx.Var("n", "int64")
    module = _laid_out(_module(_takes, [([50, 96], F32), ([n], I32)]))
    table = np.random.default_rng(0).standard_normal((50, 96)).astype(F32)
    for count in (1, 7):
        index = np.arange(count, dtype=I32) * 3
        np.testing.assert_array_equal(_run(module, [table, index]), table[index])


def test_large_kernels_get_threads_and_vectors_and_small_ones_no_threads() -> None:
    def scheduled(rows: int) -> str:
        module = _laid_out(_module(lambda bb, x: relax.op.add(x, x), [([rows, 256], F32)]))
        return module.script()

    assert "T.parallel" in scheduled(1024)
    assert "T.vectorized(" in scheduled(1024)
    assert "T.parallel" not in scheduled(4)


def test_kernels_with_rules_of_their_own_are_right_by_the_default_too() -> None:
    shape = AttentionShape(2, 1, 16)
    rng = np.random.default_rng(0)
    starts = np.zeros((1, 40), I32)
    cases: list[tuple[tirx.PrimFunc, list[np.ndarray], tuple[int, int]]] = [
        (
            prim_func(
                "rms_norm",
                lambda bb, x, w: rms_norm(bb, x, w, 1e-5),
                [((tirx.Var("n", "int64"), 37), F32), ((37,), F32)],
            ),
            [rng.standard_normal((90, 37)), rng.standard_normal(37)],
            (90, 37),
        ),
        (
            prim_func(
                "attention",
                lambda bb, *v: attention(bb, *v, shape),
                [((40, 64), F32), ((1, 40), I32), ((40, 16), F32)],
            ),
            [rng.standard_normal((40, 64)), starts, rng.standard_normal((40, 16))],
            (40, 32),
        ),
        (
            prim_func("rope_table", lambda bb: rope_table(bb, 700, 128, 1e4), []),
            [],
            (700, 128),
        ),
    ]
    for function, inputs, output in cases:
        arrays = [a if a.dtype == np.int32 else a.astype(F32) for a in inputs]
        laid_out = default(function, {}, TARGET)
        (y,), (plain,) = (
            run(f, TARGET, arrays, [output], plain=True) for f in (laid_out, function)
        )
        np.testing.assert_allclose(y, plain, rtol=1e-5, atol=1e-6)
