"""A gate, a norm, projections and a residual as one kernel agree with float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from bitfabric.models.kernels import (
    LinearGroup,
    Norm,
    bitlinear,
    fused_bitlinear,
    gated_activation,
    rms_norm,
)
from bitfabric.models.packing import PACKINGS, packed_shape
from bitfabric.schedules import schedule
from bitfabric.targets import Target
from bitfabric.targets.cpu import TARGETS, host_cpu
from bitfabric.targets.opencl import ADRENO, MALI, NVIDIA, OPENCL
from tvm import relax, tirx

from .kernel_harness import compiles_for_arm, every_gpu, every_target, layouts, prim_func, run
from .linear_reference import LinearCase

F32 = "float32"
EPSILON = 1e-5


@dataclass
class FusedCase:
    """A group, and what stands before and after it."""

    inputs: int
    outputs: tuple[int, ...]
    adapted: tuple[bool, ...]
    rank: int | None
    activation: str | None
    normed: bool
    residual: bool
    tokens: int = 1
    rounded: bool = True
    """Whether no value is on the border of two integers; among very many one always is."""
    packing: str = "2bit"

    def __post_init__(self) -> None:
        names = ("q", "k", "v")[: len(self.outputs)]
        self.group = LinearGroup(
            "group", names, self.inputs, self.outputs, self.adapted, self.packing
        )
        for seed in range(100):
            self._draw(np.random.default_rng(seed))
            if not self.rounded:
                return
            # A value on the border of two integers may become either.
            scaled = 127.0 * self.h / np.abs(self.h).max(axis=1, keepdims=True)
            if np.abs(scaled - np.floor(scaled) - 0.5).min() > 1e-4:
                return
        raise AssertionError("every draw has a value between two integers")

    def _draw(self, rng: np.random.Generator) -> None:
        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(F32)

        self.x = normal(self.tokens, self.inputs * (2 if self.activation else 1))
        self.weight = 1 + 0.1 * normal(self.inputs)
        self.added = normal(self.tokens, self.group.rows)
        h = self.x.astype("float64")
        if self.activation:
            gate, up = np.split(h, 2, axis=1)
            act = {"silu": gate / (1 + np.exp(-gate)), "relu2": np.maximum(gate, 0) ** 2}
            h = act[self.activation] * up
        if self.normed:
            h = h / np.sqrt((h * h).mean(axis=1, keepdims=True) + EPSILON) * self.weight
        self.h = h

    def linear(self) -> LinearCase:
        """Return the group alone, with its input."""
        case = LinearCase(self.group, self.tokens, self.rank, 2.0, False)
        case.x = case.lora_input = self.h.astype(F32)
        return case

    @property
    def arguments(self) -> list[np.ndarray]:
        """The kernel's arguments."""
        _, *weights = self.linear().inputs
        packed, scale, *lora = weights
        norm = [self.weight] if self.normed else []
        return [self.x, packed, scale, *norm, *lora, *([self.added] if self.residual else [])]

    def expected(self) -> np.ndarray:
        """Return ``(T, N)``, but for the quantisation's scales in float64."""
        return self.linear().forward() + (self.added if self.residual else 0.0)

    def function(self, rank: Any = None) -> tirx.PrimFunc:
        """Return the kernel, of a rank or of the case's own."""
        tokens, group = self.tokens, self.group
        types: list[Any] = [
            ((tokens, self.x.shape[1]), F32),
            (packed_shape(group.rows, group.inputs, PACKINGS[group.packing]), "int32"),
            ((len(group.outputs),), F32),
        ]
        if self.normed:
            types.append(((group.inputs,), F32))
        if self.rank is not None:
            rank = self.rank if rank is None else rank
            types += [
                ((group.adapters, rank, group.inputs), F32),
                ((rank, group.adapted_rows), F32),
            ]
        if self.residual:
            types.append(((tokens, group.rows), F32))

        def emit(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
            left = list(v[3:])
            norm = Norm(left.pop(0), EPSILON) if self.normed else None
            residual = left.pop() if self.residual else None
            return fused_bitlinear(
                bb,
                *v[:3],
                group,
                (left[0], left[1]) if left else None,
                2.0,
                activation=self.activation,
                norm=norm,
                residual=residual,
            )

        return prim_func("fused_bitlinear", emit, types)


CASES = {
    "norm": FusedCase(96, (64, 16, 16), (True, True, True), 8, None, True, False),
    "norm, some adapted": FusedCase(80, (48, 32), (False, True), 3, None, True, False),
    "norm and residual": FusedCase(64, (96,), (True,), 4, None, True, True),
    "residual": FusedCase(64, (80,), (False,), None, None, False, True),
    "gate and residual": FusedCase(96, (64,), (True,), 5, "silu", False, True),
    "all": FusedCase(112, (96,), (True,), 8, "relu2", True, True),
    "wide": FusedCase(1104, (48,), (True,), 9, "silu", True, True),
    "very wide": FusedCase(9232, (16,), (True,), 2, "relu2", True, True),
}
every_case = pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))


def _check(case: FusedCase, target: Target, plain: bool = False) -> None:
    (y,) = run(case.function(), target, case.arguments, [case.added.shape], plain=plain)
    expected = case.expected()
    assert np.abs(y - expected).max() <= 2e-6 * np.abs(expected).max()


@every_case
def test_the_meaning(case: FusedCase) -> None:
    _check(case, host_cpu(), plain=True)


@every_target
@every_case
def test_on_processors(target: Target, case: FusedCase) -> None:
    _check(case, target)


@every_target
@pytest.mark.parametrize("tokens", [3, 37])
def test_several_tokens_on_processors(target: Target, tokens: int) -> None:
    _check(replace(CASES["all"], tokens=tokens), target)


@layouts(OPENCL, NVIDIA, MALI)
@every_case
def test_on_graphics_processors(target: Target, case: FusedCase) -> None:
    _check(case, target)


MANY = {
    "norm": FusedCase(96, (64, 16, 16), (True, False, True), 8, None, True, False, 67, False),
    "all": FusedCase(1104, (48,), (True,), 9, "silu", True, True, 11, False),
    "very wide": FusedCase(9232, (32,), (True,), 2, None, True, True, 5, False),
    "no adapter": FusedCase(64, (80,), (False,), None, None, True, True, 50, False),
    "one work-group for all": FusedCase(
        64, (32, 16), (True, True), 12, None, True, True, 1030, False
    ),
}


@layouts(OPENCL, NVIDIA, MALI)
@pytest.mark.parametrize("case", list(MANY.values()), ids=list(MANY))
def test_several_tokens_on_graphics_processors(target: Target, case: FusedCase) -> None:
    (y,) = run(case.function(), target, case.arguments, [case.added.shape])
    expected = case.expected()
    error = np.abs(y - expected).max(axis=1)
    # A value on the border of two integers may become either.
    step = np.abs(case.h).max(axis=1) / 127.0 * case.linear().scale.max()
    assert (error <= 1.01 * step).all()
    assert (error > 2e-6 * np.abs(expected).max()).mean() <= 0.2


@every_gpu
@pytest.mark.parametrize("rank", [1, 7, 200])
def test_any_rank_on_graphics_processors(target: Target, rank: int) -> None:
    """The rank decides at run time how many launches there are."""
    case = replace(CASES["all"], rank=rank)
    function = CASES["all"].function(rank=tirx.Var("r", "int64"))
    (y,) = run(function, target, case.arguments, [case.added.shape])
    expected = case.expected()
    assert np.abs(y - expected).max() <= 2e-6 * np.abs(expected).max()


def _separate(case: FusedCase) -> list[tirx.PrimFunc]:
    """Return the kernels, gate, norm and projections, that a fused one stands for."""
    row, group, activation = (1, case.inputs), case.group, case.activation
    linear = [(a.shape, str(a.dtype)) for a in case.linear().inputs]

    def gate(bb: relax.BlockBuilder, v: relax.Var) -> relax.Var:
        return gated_activation(bb, v, str(activation))

    def norm(bb: relax.BlockBuilder, v: relax.Var, weight: relax.Var) -> relax.Var:
        return rms_norm(bb, v, weight, EPSILON)

    def project(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        return bitlinear(bb, *v[:3], group, (v[3], v[4]), 2.0)

    return [
        prim_func("gated_activation", gate, [(case.x.shape, F32)]),
        prim_func("rms_norm", norm, [(row, F32), ((case.inputs,), F32)]),
        prim_func("bitlinear", project, linear),
    ]


@pytest.mark.parametrize(
    "target", [*every_target.args[1], *every_gpu.args[1]], ids=lambda target: target.name
)
def test_integers_are_those_of_separate_kernels(target: Target) -> None:
    """A value on the border of two integers becomes the same one, so tokens agree with prompts."""
    case = replace(CASES["wide"])
    fused, (gate, norm, project) = case.function(), _separate(case)
    for seed in range(20):
        case._draw(np.random.default_rng(seed))
        (y,) = run(fused, target, case.arguments, [case.added.shape])
        (h,) = run(gate, target, [case.x], [(1, case.inputs)])
        (h,) = run(norm, target, [h, case.weight], [(1, case.inputs)])
        (z,) = run(project, target, [h, *case.linear().inputs[1:]], [(1, case.group.rows)])
        assert np.abs(y - (z + case.added)).max() <= 1e-6 * np.abs(y).max()


def test_the_rules_are_chosen() -> None:
    function = CASES["all"].function()
    for target in TARGETS:
        assert schedule(function, target)[0].endswith("cpu.bitlinear")
    for target in (OPENCL, NVIDIA, ADRENO, MALI):
        assert schedule(function, target)[0].endswith("gpu.bitlinear")


def test_it_compiles_for_arm() -> None:
    assert compiles_for_arm(CASES["all"].function())
