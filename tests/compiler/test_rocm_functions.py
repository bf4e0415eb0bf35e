"""What ROCm's kernels are linked with does what it says, thread by thread."""

from __future__ import annotations

import numpy as np
import pytest
from bitfabric.compiler.rocm.functions import functions

from .lanes import Wave

waves = pytest.mark.parametrize("size", [32, 64])


def wave(size: int, count: int) -> Wave:
    """Return a wave whose first threads run."""
    return Wave(functions(size), size, np.arange(size) < count)


@waves
@pytest.mark.parametrize("part", [1, 2, 4])
def test_every_running_thread_gets_the_same_sum(size: int, part: int) -> None:
    count = size // part
    values = np.random.default_rng(size).normal(size=size).astype(np.float32)
    found = wave(size, count).call("fabric_subgroup_add_float", values)[:count]
    assert len({value.tobytes() for value in found}) == 1
    assert abs(found[0] - values[:count].astype(np.float64).sum()) < 1e-5
    whole = np.random.default_rng(1).integers(-(2**20), 2**20, size).astype(np.int32)
    assert set(wave(size, count).call("fabric_subgroup_add_int", whole)[:count]) == {
        whole[:count].sum()
    }


@waves
@pytest.mark.parametrize("part", [1, 2, 4])
def test_every_running_thread_gets_the_largest(size: int, part: int) -> None:
    count = size // part
    # All below zero, so that a thread that does not run must not count as zero.
    values = -np.random.default_rng(size).uniform(1, 2, size).astype(np.float32)
    found = wave(size, count).call("fabric_subgroup_max_float", values)[:count]
    assert set(found) == {values[:count].max()}
    whole = values.view(np.int32)
    found = wave(size, count).call("fabric_subgroup_max_int", whole)[:count]
    assert set(found) == {whole[:count].max()}


@waves
def test_a_thread_knows_its_number(size: int) -> None:
    assert list(wave(size, size).call("fabric_lane")) == list(range(size))


def test_a_float_becomes_the_nearest_byte() -> None:
    values = np.array([0.5, 1.5, -0.5, -2.5, 127.4, 300.0, -128.6, -300.0], np.float32)
    right = np.clip(np.rint(values), -128, 127).astype(np.int8)
    found = wave(32, 32).call("fabric_byte", np.resize(values, 32))[: len(values)]
    assert list(found.astype(np.uint8)) == list(right.view(np.uint8))
