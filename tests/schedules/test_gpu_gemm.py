"""The matrix product of graphics processors agrees with float64, whatever its operands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from bitfabric.compiler.device_code import NAME as DEVICE_CODE
from bitfabric.schedules.gpu.gemm import Product, depth_major, matmul, row_major, store_vector
from bitfabric.schedules.gpu.gemm_tile import GROUPS, Tile, plan_splits, plan_tile
from bitfabric.schedules.gpu.kernel import Gpu
from bitfabric.schedules.gpu.operand import VECTOR, Operand, shifted
from bitfabric.schedules.gpu.work import THREADS, launch_works
from bitfabric.targets import Target
from bitfabric.targets.opencl import MALI, OPENCL
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from .kernel_harness import every_gpu, layouts

every_layout = layouts(OPENCL, MALI)
"""One target with memory shared by a work-group, one without."""


def _run(
    target: Target,
    body: Callable[..., None],
    types: list[tuple[tuple[Any, ...], str]],
    inputs: list[np.ndarray],
    *outputs: tuple[int, ...],
) -> list[np.ndarray]:
    """Run the launches that ``body(*buffers)`` emits."""

    def extent(value: Any) -> Any:
        return tirx.const(value, "int32") if isinstance(value, int) else value

    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True})
        body(
            *[
                T.arg(f"v{i}", T.buffer([extent(e) for e in shape], dtype))
                for i, (shape, dtype) in enumerate(types)
            ]
        )
    module = tvm.IRModule({"main": builder.get().with_attr("global_symbol", "main")})
    options = tvm.target.Target(target.options, host="llvm")
    kernel = tvm.compile(module, target=options, tir_pipeline=DEVICE_CODE)["main"]
    device = tvm.runtime.device(target.device, 0)
    results = [tvm.runtime.tensor(np.full(s, np.nan, "float32"), device) for s in outputs]
    kernel(*[tvm.runtime.tensor(array, device) for array in inputs], *results)
    return [result.numpy() for result in results]


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype("float32")


def _product(
    target: Target, rows: int, columns: int, depth: int, order: str = "rr", symbolic: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return a product and its reference; `order` tells how each factor lies, r or d major."""
    m = tirx.Var("m", "int32") if symbolic else rows
    left = _normal(rows, depth) if order[0] == "r" else _normal(depth, rows)
    right = _normal(columns, depth) if order[1] == "r" else _normal(depth, columns)

    def body(a: Any, b: Any, c: Any) -> None:
        factors = [
            row_major(x) if o == "r" else depth_major(x) for x, o in zip((a, b), order, strict=True)
        ]
        matmul(Gpu(target), m, columns, depth, *factors, lambda i, j, v: store_vector(c, v, i, j))

    shape = (m, depth) if order[0] == "r" else (depth, m)
    types = [(shape, "float32"), (right.shape, "float32"), ((m, columns), "float32")]
    (found,) = _run(target, body, types, [left, right], (rows, columns))
    a = left if order[0] == "r" else left.T
    return found, a.astype("float64") @ (right.T if order[1] == "r" else right)


def _close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max()


SIZES = [(64, 64, 64), (70, 100, 300), (128, 80, 520), (17, 33, 37), (1, 16, 200), (40, 20, 3)]


@every_layout
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("order", ["rr", "rd", "dr", "dd"])
def test_every_size_and_order(target: Target, size: tuple[int, int, int], order: str) -> None:
    _close(*_product(target, *size, order))


@every_layout
def test_symbolic_rows(target: Target) -> None:
    for rows in (1, 77):
        _close(*_product(target, rows, 132, 68, "rd", symbolic=True))


@layouts(OPENCL)
@pytest.mark.parametrize(
    "tile",
    [Tile(128, 64, 16, 8), Tile(32, 64, 4, 8), Tile(16, 32, 2, 4), Tile(16, 16, 1, 4, step=64)],
    ids=str,
)
@pytest.mark.parametrize("splits", [1, 3])
def test_every_tile_and_split(target: Target, tile: Tile, splits: int) -> None:
    a, b = _normal(70, 132), _normal(132, 80)

    def body(x: Any, y: Any, z: Any) -> None:
        product = Product(Gpu(target), 70, 80, 132, row_major(x), depth_major(y), splits, tile)
        assert product.splits == min(splits, product.steps)
        if splits > 1:
            with pytest.raises(ValueError, match="3 parts"):
                product.work(lambda i, j, v: None)
        parts = product.parts()
        launch_works([product.partial_work(product.keep(parts))])
        launch_works([product.reduction(parts, lambda i, j, v: store_vector(z, v, i, j))])

    types = [(s, "float32") for s in (a.shape, b.shape, (70, 80))]
    _close(*_run(target, body, types, [a, b], (70, 80)), a.astype("float64") @ b)


@every_layout
def test_works_of_different_length_share_a_launch(target: Target) -> None:
    a, b = _normal(37, 160), _normal(24, 160)

    def body(x: Any, y: Any, long: Any, short: Any) -> None:
        left, right, gpu = row_major(x), row_major(y), Gpu(target)
        whole = Product(gpu, 37, 24, 160, left, right, splits=1)
        rest = Product(gpu, 37, 8, 20, shifted(left, depth=140), shifted(right, 16, 140), splits=1)
        launch_works(
            [
                rest.work(lambda i, j, v: store_vector(short, v, i, j)),
                whole.work(lambda i, j, v: store_vector(long, v, i, j)),
            ]
        )

    shapes = [a.shape, b.shape, (37, 24), (37, 8)]
    found = _run(target, body, [(s, "float32") for s in shapes], [a, b], *shapes[2:])
    _close(found[0], a.astype("float64") @ b.T)
    _close(found[1], a[:, 140:].astype("float64") @ b[16:, 140:].T)


@every_layout
def test_operands_may_be_anything_that_unpacks(target: Target) -> None:
    rng = np.random.default_rng(3)
    x, codes = _normal(9, 48), rng.integers(-128, 128, (20, 48)).astype("int8")
    scale = rng.uniform(0.5, 1.5, 20).astype("float32")

    def body(left: Any, words: Any, scales: Any, y: Any) -> None:
        def unpack(word: Any, row: Any, k: Any) -> list[Any]:
            # The upper byte's sign goes with an arithmetic shift.
            bits = (T.broadcast(word, 4) << T.ramp(24, -8, 4)) >> T.broadcast(24, 4)
            return [T.Cast(VECTOR, bits) * T.broadcast(scales[row], 4)]

        table = Operand(lambda row, k: words[row, k // 4], dtype="int32", unpack=unpack)
        gpu = Gpu(target)
        matmul(gpu, 9, 20, 48, row_major(left), table, lambda i, j, v: store_vector(y, v + v, i, j))

    types = [(x.shape, "float32"), ((20, 12), "int32"), ((20,), "float32"), ((9, 20), "float32")]
    (found,) = _run(target, body, types, [x, codes.view("int32"), scale], (9, 20))
    _close(found, 2.0 * x.astype("float64") @ (codes * scale[:, None].astype("float64")).T)


@every_gpu
def test_sums_have_one_order(target: Target) -> None:
    first, second = (_product(target, 70, 100, 2000)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_tiles_fit_their_threads_and_memory() -> None:
    plain = Operand(lambda outer, depth: outer)
    word = Operand(lambda outer, depth: outer, along_depth=False, width=16)
    for rows in (1, 16, 33, 100, 128, 4096):
        for columns in (4, 16, 48, 768, 2048, 32000):
            for depth in (16, 768, 11264):
                tile = plan_tile(rows, columns, depth)
                assert tile.threads_down * tile.threads_across == THREADS
                assert 16 * tile.vectors(plain, word) <= OPENCL.limits.shared_bytes


def test_a_hundred_tokens_fill_a_large_processor() -> None:
    for columns, depth in ((2048, 6144), (2048, 11264), (5632, 2048), (768, 2304)):
        tile = plan_tile(128, columns, depth)
        tiles = (-(-128 // tile.rows), -(-columns // tile.columns))
        groups = tiles[0] * tiles[1] * plan_splits(tiles, depth // tile.step)
        assert 0.75 * GROUPS <= groups <= 1.1 * GROUPS
