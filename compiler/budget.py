"""A memory budget becomes choices: what takes less memory, in the order in which it costs least.

The choices that leave every loss as it is, but for rounding, come first; each is a row of
`CHOICES`. What the budget has left in the end goes to layers that stay in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..models.config import ModelConfig
from ..targets import FabricError, Target
from .options import CompileOptions
from .plan import Footprints, Plan, resident_layers, training_plan
from .recompute import PLACES, way_to_recompute

MIB = 1 << 20
Lessen = Callable[[CompileOptions], CompileOptions | None]


@dataclass(frozen=True)
class Choice:
    """Something that can take less memory.

    Attributes
    ----------
    name : str
        What a person calls it.
    lessen : callable
        Return options that take less, or None where there are none.
    """

    name: str
    lessen: Lessen


def _recompute_more(options: CompileOptions) -> CompileOptions | None:
    ways = list(PLACES)
    place = ways.index(options.recompute) + 1
    return replace(options, recompute=ways[place]) if place < len(ways) else None


def _fewer_rows(options: CompileOptions) -> CompileOptions | None:
    rows = options.micro_batch
    return replace(options, micro_batch=rows // 2) if rows > 1 else None


def _streamed(options: CompileOptions) -> CompileOptions | None:
    return None if options.resident_layers == 0 else replace(options, resident_layers=0)


def _small_head(options: CompileOptions) -> CompileOptions | None:
    return replace(options, head="int8") if options.head != "int8" else None


def _one_gradient(options: CompileOptions) -> CompileOptions | None:
    return replace(options, gradients="layer") if options.gradients == "all" else None


def _packed(options: CompileOptions) -> CompileOptions | None:
    return replace(options, packing="1.6bit") if options.packing != "1.6bit" else None


def _small_moments(options: CompileOptions) -> CompileOptions | None:
    return replace(options, moments="int8") if options.moments != "int8" else None


CHOICES = (
    Choice("recompute", _recompute_more),
    Choice("micro-batch", _fewer_rows),
    Choice("layers in memory", _streamed),
    Choice("packing", _packed),
    Choice("head", _small_head),
    Choice("moments", _small_moments),
    Choice("gradients", _one_gradient),
)
"""In the order in which they are made; the first four leave the losses as they are,
but for rounding."""


def within_budget(
    config: ModelConfig,
    target: Target,
    options: CompileOptions,
    footprints: Callable[[CompileOptions], Footprints],
) -> CompileOptions:
    """Return options whose training fits `options.memory_budget`.

    Parameters
    ----------
    config : ModelConfig
        The model.
    target : Target
        Where it runs.
    options : CompileOptions
        What was asked for, which is only ever lessened; where there is no budget, it is only said
        what is recomputed.
    footprints : callable
        Gives the footprints of the functions compiled with some options.

    Raises
    ------
    FabricError
        If nothing fits: it says the smallest budget that does.
    """
    budget = options.memory_budget
    if budget is None:
        return replace(options, recompute=way_to_recompute(config, target, options))
    if options.recompute == "auto":
        # A budget says what may be taken: all that it holds makes a step faster.
        options = replace(options, recompute="all" if options.saves_memory else "none")

    def plan(of: CompileOptions) -> Plan:
        return training_plan(config, target, of, footprints(of))

    for choice in CHOICES:
        while plan(options).peak > budget:
            less = choice.lessen(options)
            if less is None:
                break
            options = less
    least = plan(options).peak
    if least > budget:
        raise FabricError(
            f"Training this model takes {least / MIB:,.0f} MiB at least; the budget is "
            f"{budget / MIB:,.0f} MiB.",
            f"Give --memory-budget {-(-least // MIB)}MiB or more, or lower --context or "
            "--lora-rank.",
        )
    # What is left goes to layers: the most that fit.
    depth, most = config.num_layers, resident_layers(config, options)
    for count in range(depth, most, -1):
        more = replace(options, resident_layers=None if count == depth else count)
        if plan(more).peak <= budget:
            return more
    return options
