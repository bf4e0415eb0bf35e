"""A memory budget becomes choices: what takes less memory, in the order in which it costs least.

Where everything else fits, activations are kept as far as the budget goes. Otherwise two ways are
tried. The first keeps every layer in memory, and gives up what else there is. Where that is not
enough, layers are read while others compute, and what changes no loss comes first. What was given
up and turns out not to be needed is taken back; what the budget has left in the end goes to layers
that stay in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..models.config import ModelConfig
from ..targets import FabricError, Target
from .options import CompileOptions
from .plan import Plan, outside_inputs, resident_layers, training_plan
from .recompute import PLACES, way_to_recompute
from .workspaces import Footprints

MIB = 1 << 20
Lessen = Callable[[CompileOptions], CompileOptions | None]
ALL_INPUTS = 1 << 16
"""More layers than a model has."""


@dataclass(frozen=True)
class Choice:
    """Something that can take less memory.

    Attributes
    ----------
    name : str
        What a person calls it.
    fields : tuple of str
        The options that it changes.
    lessen : callable
        Return options that take less, or None where there are none.
    """

    name: str
    fields: tuple[str, ...]
    lessen: Lessen


def _fewer_rows(options: CompileOptions) -> CompileOptions | None:
    rows = options.micro_batch
    return replace(options, micro_batch=rows // 2) if rows > 1 else None


def _streamed(options: CompileOptions) -> CompileOptions | None:
    return None if options.resident_layers == 0 else replace(options, resident_layers=0)


def _set(field: str, least: object) -> Choice:
    """Return the choice that gives an option its smallest value."""

    def lessen(options: CompileOptions) -> CompileOptions | None:
        at_least = getattr(options, field) == least
        return None if at_least else replace(options, **{field: least})  # type: ignore[arg-type]

    return Choice(field, (field,), lessen)


def _one_gradient(options: CompileOptions) -> CompileOptions | None:
    return replace(options, gradients="layer") if options.gradients == "all" else None


MICRO_BATCH = Choice("micro-batch", ("micro_batch",), _fewer_rows)
STREAMED = Choice("layers in memory", ("resident_layers",), _streamed)
ENDS, INPUTS = _set("host_ends", True), _set("host_inputs", ALL_INPUTS)
PACKING, HEAD, MOMENTS = _set("packing", "1.6bit"), _set("head", "int8"), _set("moments", "int8")
GRADIENTS = Choice("gradients", ("gradients",), _one_gradient)
IN_MEMORY = (MICRO_BATCH, PACKING, ENDS, INPUTS, HEAD, GRADIENTS, MOMENTS)
"""What is given up with every layer in memory; the first four change no loss, but for rounding."""
STREAMING = (MICRO_BATCH, STREAMED, PACKING, ENDS, INPUTS, HEAD, MOMENTS, GRADIENTS)
"""What is given up where that is not enough; the first five change no loss, but for rounding."""


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

    def plan(of: CompileOptions) -> Plan:
        return training_plan(config, target, of, footprints(of))

    def fits(of: CompileOptions) -> bool:
        return plan(of).peak <= budget

    ways = [replace(options, recompute=way) for way in _ways(options)]
    options = ways[-1]
    if fits(options):
        return next(more for more in ways if fits(more))
    for choices in (IN_MEMORY, STREAMING):
        found = _lessened(options, choices, fits)
        if fits(found):
            found = _taken_back(options, found, choices, fits)
            return _with_inputs(config, options, _with_layers(config, found, fits), fits)
    least = plan(found).peak
    raise FabricError(
        f"Training this model takes {least / MIB:,.0f} MiB at least; the budget is "
        f"{budget / MIB:,.0f} MiB.",
        f"Give --memory-budget {-(-least // MIB)}MiB or more, or lower --context or --lora-rank.",
    )


Fits = Callable[[CompileOptions], bool]


def _ways(options: CompileOptions) -> list[str]:
    """Return the ways to recompute that may be, from the most memory: a budget is there to be used.

    The last computes everything again.
    """
    if options.saves_memory:
        return ["all"]
    ways = list(PLACES)
    return ways if options.recompute == "auto" else ways[ways.index(options.recompute) :]


def _lessened(options: CompileOptions, choices: tuple[Choice, ...], fits: Fits) -> CompileOptions:
    """Return the options after as many choices, in order, as it takes to fit."""
    for choice in choices:
        while not fits(options):
            less = choice.lessen(options)
            if less is None:
                break
            options = less
    return options


def _taken_back(
    asked: CompileOptions, found: CompileOptions, choices: tuple[Choice, ...], fits: Fits
) -> CompileOptions:
    """Return the options without the choices that later ones have made needless."""
    for choice in reversed(choices[1:]):
        more = replace(found, **{field: getattr(asked, field) for field in choice.fields})
        if more != found and fits(more):
            found = more
    return found


def _with_layers(config: ModelConfig, found: CompileOptions, fits: Fits) -> CompileOptions:
    """Return the options with the most layers in memory that fit."""
    depth = config.num_layers
    for count in range(depth, resident_layers(config, found), -1):
        more = replace(found, resident_layers=None if count == depth else count)
        if fits(more):
            return more
    return found


def _with_inputs(
    config: ModelConfig, asked: CompileOptions, found: CompileOptions, fits: Fits
) -> CompileOptions:
    """Return the options with the most layers' inputs in memory that fit."""
    for count in range(outside_inputs(config, asked), outside_inputs(config, found)):
        more = replace(found, host_inputs=count)
        if fits(more):
            return more
    return replace(found, host_inputs=outside_inputs(config, found))
