"""Linear layers of float16 weights, heads' norms and rotations against float64, on every target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from bitfabric.models.kernels import AttentionShape, LinearGroup, dense, head_norm, rotate_heads
from bitfabric.models.kernels.dense import dense_vjp
from bitfabric.schedules import schedule
from bitfabric.schedules.cpu import dense as cpu_rules
from bitfabric.targets import Target, get_target
from tvm import relax, tirx

from .kernel_harness import every_gpu, every_target, prim_func, run, tolerance

F32 = "float32"
TYPES = {"x": F32, "weight": "int32", "a": F32, "b": F32, "lora_input": F32}


@dataclass(frozen=True)
class Case:
    """A group of projections of which the middle one may be without an adapter."""

    tokens: int
    adapted: tuple[bool, ...]
    rank: int = 5
    separate: bool = False

    @property
    def group(self) -> LinearGroup:
        """Three projections of 48 inputs."""
        return LinearGroup("group", ("q", "k", "v"), 48, (64, 16, 32), self.adapted, "dense")

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the inputs of the forward kernel by name."""
        generator = np.random.default_rng(self.tokens)
        group, rank = self.group, self.rank

        def normal(*shape: int) -> np.ndarray:
            return generator.standard_normal(shape).astype(F32)

        found = {"x": normal(self.tokens, 48), "weight": normal(112, 48).astype(np.float16)}
        # Subnormal numbers and the largest ones are weights like others.
        found["weight"][0, :4] = (6e-8, -3e-5, 65504.0, -0.0)
        if any(self.adapted):
            found["a"], found["b"] = (
                normal(group.adapters, rank, 48),
                normal(rank, group.adapted_rows),
            )
        if self.separate:
            found["lora_input"] = normal(self.tokens, 48)
        return found


CASES = [
    Case(33, (True, True, True)),
    Case(1, (True, False, True), rank=3),
    Case(20, (True, False, True), rank=8, separate=True),
    Case(7, (False, False, False)),
]
every_case = pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
SCALE = 0.5


def _inputs(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [a.view(np.int32) if a.dtype == np.float16 else a for a in arrays.values()]


def _forward(case: Case, tokens: Any = None, rank: Any = None) -> tirx.PrimFunc:
    def emit(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        lora = (v[2], v[3]) if len(v) > 3 else None
        return dense(bb, *v[:2], case.group, lora, SCALE, v[4] if len(v) > 4 else None)

    arrays = case.arrays()
    shapes = {n: list(a.shape) for n, a in zip(arrays, _inputs(arrays), strict=True)}
    if tokens is not None:
        shapes["x"][0], shapes["a"][1], shapes["b"][0] = tokens, rank, rank
    return prim_func("dense", emit, [(shape, TYPES[n]) for n, shape in shapes.items()])


def _reference(
    case: Case, dy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return y, dx through W, dx through the adapters, dA and dB, in float64."""
    v = {name: array.astype(np.float64) for name, array in case.arrays().items()}
    x, w = v["x"], v["weight"]
    y, dx, through, gradients = x @ w.T, dy @ w, np.zeros_like(x), []
    if "a" in v:
        source, da, db = v.get("lora_input", x), np.zeros_like(v["a"]), np.zeros_like(v["b"])
        row = column = index = 0
        for size, adapted in zip(case.group.outputs, case.adapted, strict=True):
            if adapted:
                a, b = v["a"][index], v["b"][:, column : column + size]
                part, u = dy[:, row : row + size], source @ a.T
                y[:, row : row + size] += SCALE * u @ b
                du = SCALE * part @ b.T
                through += du @ a
                da[index], db[:, column : column + size] = du.T @ source, SCALE * u.T @ part
                index, column = index + 1, column + size
            row += size
        gradients = [da, db]
    return y, dx, through, gradients


def _check(found: np.ndarray, wanted: np.ndarray, bound: float) -> None:
    assert np.abs(found - wanted).max() <= bound * np.abs(wanted).max()


def _check_forward(case: Case, target: Target, symbolic: bool) -> None:
    arrays = case.arrays()
    sizes = (tirx.Var("n", "int64"), tirx.Var("r", "int64")) if symbolic else ()
    wanted = _reference(case, np.zeros((case.tokens, 112)))[0]
    (found,) = run(_forward(case, *sizes), target, _inputs(arrays), [wanted.shape])
    _check(found, wanted, 2e-6)


def _check_backward(case: Case, target: Target) -> None:
    def emit(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        return dense_vjp(bb, *v[:3], case.group.parameters(SCALE), v[3:])

    arrays = case.arrays()
    dy = np.random.default_rng(1).standard_normal((case.tokens, 112)).astype(F32)
    _, dx, through, gradients = _reference(case, dy.astype(np.float64))
    wanted = [dx if case.separate else dx + through, *gradients]
    wanted += [through] if case.separate else []
    types = [(dy.shape, F32)]
    types += [(a.shape, TYPES[n]) for n, a in zip(arrays, _inputs(arrays), strict=True)]
    function = prim_func("dense_vjp", emit, types)
    found = run(function, target, [dy, *_inputs(arrays)], [each.shape for each in wanted])
    for one, other in zip(found, wanted, strict=True):
        _check(one, other, tolerance(target, 2e-6))


@every_case
@every_target
def test_products_of_a_processor_equal_float64s(case: Case, target: Target) -> None:
    rule, _ = schedule(_forward(case), target)
    assert rule == cpu_rules.__name__
    _check_forward(case, target, symbolic=False)
    _check_backward(case, target)


@every_target
def test_tokens_and_rank_may_be_open(target: Target) -> None:
    _check_forward(CASES[0], target, symbolic=True)


@every_case
@every_gpu
def test_products_of_a_device_equal_float64s(case: Case, target: Target) -> None:
    _check_forward(case, target, symbolic=case is CASES[0])
    _check_backward(case, target)


SHAPE = AttentionShape(heads=4, kv_heads=2, head_dim=16)
TOKENS, EPSILON = 9, 1e-6


def _heads(qkv: np.ndarray) -> np.ndarray:
    return qkv.reshape(TOKENS, 8, 16)


def _check_heads(target: Target) -> None:
    generator = np.random.default_rng(2)
    qkv = generator.standard_normal((TOKENS, SHAPE.width)).astype(F32)
    query, key = (generator.standard_normal(16).astype(F32) for _ in range(2))

    def norm(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        return head_norm(bb, *v, SHAPE, EPSILON)

    function = prim_func("head_norm", norm, [(qkv.shape, F32), ((16,), F32), ((16,), F32)])
    (found,) = run(function, target, [qkv, query, key], [qkv.shape])
    wanted = _heads(qkv.astype(np.float64)).copy()
    rms = np.sqrt((wanted**2).mean(-1, keepdims=True) + EPSILON)
    wanted[:, :4] = (wanted / rms)[:, :4] * query
    wanted[:, 4:6] = (_heads(qkv) / rms)[:, 4:6] * key
    np.testing.assert_allclose(_heads(found), wanted, rtol=1e-5, atol=1e-6)

    angles = generator.uniform(0, 6, (2, 12, 8))
    tables = [np.concatenate([np.cos(a), np.sin(a)], axis=1) for a in angles]
    rope = np.concatenate(tables, axis=1).astype(F32)
    position = generator.integers(0, 12, TOKENS, np.int32)
    span = np.array([16, 5], np.int32)

    def rotate(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        return rotate_heads(bb, *v, SHAPE)

    types = [(qkv.shape, F32), ((TOKENS,), "int32"), (rope.shape, F32), ((2,), "int32")]
    function = prim_func("rotate_heads", rotate, types)
    (found,) = run(function, target, [qkv, position, rope, span], [qkv.shape])
    turned = _heads(qkv.astype(np.float64)).copy()
    angle = angles[1][position][:, None]
    low, high = turned[:, :6, :8].copy(), turned[:, :6, 8:].copy()
    turned[:, :6, :8] = low * np.cos(angle) - high * np.sin(angle)
    turned[:, :6, 8:] = high * np.cos(angle) + low * np.sin(angle)
    np.testing.assert_allclose(_heads(found), turned, rtol=1e-5, atol=1e-6)


def test_heads_of_a_processor_are_normalised_and_turned_by_their_layers_table() -> None:
    _check_heads(get_target("cpu"))


@every_gpu
def test_heads_of_a_device_are_normalised_and_turned_by_their_layers_table(target: Target) -> None:
    _check_heads(target)
