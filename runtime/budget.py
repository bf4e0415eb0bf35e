"""Opening the engines of a bundle as its memory plan says, and keeping the plan's word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..targets import FabricError
from ..targets.cache_room import CAPACITY
from .bundle import Bundle
from .engine import TrainingEngine
from .inference import InferenceEngine
from .memory import peak_memory_mib
from .protocols import Tensors
from .streaming import Outside, StreamingTrainingEngine
from .streaming_inference import StreamingInferenceEngine

MIB = 1 << 20


class BudgetError(FabricError):
    """A memory budget that the plan, or the run, goes beyond."""


def training_engine(bundle: Bundle, budget: int | None = None) -> TrainingEngine:
    """Open the engine that trains a bundle: with all layers in memory, or streaming.

    Parameters
    ----------
    bundle : Bundle
        An open bundle.
    budget : int, optional
        Most bytes that it may take; that of the compilation where it is not given.

    Raises
    ------
    BudgetError
        If the plan takes more; later, from the methods that compute, if the run does.
    """
    plan = bundle.manifest["plan"]
    bound = plan["budget"] if budget is None else budget
    _check(plan, "training", bound)
    resident, gradients = plan["resident_layers"], plan["gradients"]
    # A bundle of before has no such words, and keeps everything in memory.
    outside = Outside(
        plan.get("host_ends", False), plan.get("evicted_layers", 0), plan.get("host_inputs", 0)
    )
    if resident == bundle.config["num_layers"] and gradients == "all" and outside == Outside():
        engine = TrainingEngine(bundle)
    else:
        engine = StreamingTrainingEngine(bundle, resident, gradients, outside)
    if bound is not None:
        engine.memory.keep_within(bound)
        for name in ("accumulate", "evaluate", "update"):
            setattr(engine, name, _watched(getattr(engine, name), engine, bound))
    return engine


def inference_engine(
    bundle: Bundle,
    adapters: Sequence[tuple[Tensors, float]] = (),
    capacity: int | None = None,
    batch: int = 1,
    budget: int | None = None,
) -> InferenceEngine:
    """Open the engine that writes with a bundle, see `training_engine` and `InferenceEngine`.

    The budget of the compilation is the training's, so it does not hold here. The capacity is
    2048 where it is not given, or less where the model attends over less.

    Raises
    ------
    BudgetError
        If the plan takes more; later, from the methods that compute, if the run does.
    FabricError
        If the capacity is more than the model attends over.
    """
    limit = int(bundle.config["max_context"])
    if capacity is None:
        capacity = min(CAPACITY, limit)
    if capacity > limit:
        raise FabricError(
            f"A capacity of {capacity} tokens was asked for; this model attends over {limit}.",
            f"Ask for --capacity {limit} at most.",
        )
    plan, bound = bundle.manifest["plan"], budget
    _check(plan, "writing", bound)
    resident = plan["resident_layers"]
    if resident == bundle.config["num_layers"]:
        engine = InferenceEngine(bundle, adapters, capacity, batch)
    else:
        engine = StreamingInferenceEngine(bundle, adapters, capacity, batch, resident=resident)
    if bound is not None:
        engine.memory.keep_within(bound)
        for name in ("prefill", "score", "decode", "decode_batch"):
            setattr(engine, name, _watched(getattr(engine, name), engine, bound))
    return engine


def _check(plan: dict[str, Any], work: str, bound: int | None) -> None:
    """Refuse a budget that is less than the plan of some work."""
    need = plan[work]["peak"]
    if bound is not None and need > bound:
        least = -(-need // MIB)
        raise BudgetError(
            f"This bundle is planned to take {least:,} MiB in {work}; the budget is "
            f"{bound / MIB:,.0f} MiB.",
            f"Compile it with --memory-budget {bound // MIB}MiB, or give {least}MiB.",
        )


def _watched(function: Callable[..., Any], engine: Any, bound: int) -> Callable[..., Any]:
    """Return a function after which the memory is looked at."""

    def call(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        taken = engine.device_memory_mib or peak_memory_mib()
        if taken * MIB > bound:
            raise BudgetError(
                f"{taken:,.0f} MiB were taken; the memory budget is {bound / MIB:,.0f} MiB.",
                "Raise --memory-budget; the last checkpoint is whole.",
            )
        return result

    return call
