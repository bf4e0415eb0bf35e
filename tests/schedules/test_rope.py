"""The table of rotations is exact far out, on every target, and needs no double precision."""

from __future__ import annotations

import numpy as np
import pytest
from bitfabric.models.kernels import rope_table
from bitfabric.targets import Target
from tvm import relax, tirx

from .kernel_harness import every_gpu, every_target, prim_func, run

POSITIONS = 100_001
SHAPES = [(128, 1e4), (64, 5e5), (6, 1e4), (2, 1e4)]


def _function(positions: object, head_dim: int, theta: float) -> tirx.PrimFunc:
    def emit(bb: relax.BlockBuilder, *like: relax.Var) -> relax.Var:
        return rope_table(bb, positions, head_dim, theta)

    # The argument brings a symbolic extent into scope; the kernel does not take it.
    return prim_func("rope_table", emit, [((positions,), "float32")])


def _check(target: Target, head_dim: int, theta: float) -> None:
    """Compare positions near and far with float64."""
    function = _function(tirx.Var("m", "int64"), head_dim, theta)
    (table,) = run(function, target, [], [(POSITIONS, head_dim)])
    places = np.array([0, 1, 17, 4095, 65_537, 99_999, 100_000])
    angle = places[:, None] * theta ** (-2.0 * np.arange(head_dim // 2) / head_dim)
    expected = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose(table[places], expected, rtol=0, atol=5e-7)


@every_target
@pytest.mark.parametrize(("head_dim", "theta"), SHAPES)
def test_rotations_on_processors(target: Target, head_dim: int, theta: float) -> None:
    _check(target, head_dim, theta)


@every_gpu
@pytest.mark.parametrize(("head_dim", "theta"), SHAPES)
def test_rotations_on_graphics_processors(target: Target, head_dim: int, theta: float) -> None:
    _check(target, head_dim, theta)


def test_no_double_precision_is_needed() -> None:
    assert "float64" not in _function(16, 128, 1e4).script()
