"""Memory and time of a model on a target, predicted before any code is generated.

Memory is the real plan: the module is lowered for one layer of the model's own shape, and what its
functions allocate is read off; what grows with depth is counted. Time is work over rate: the
operations of each kind of kernel, at the fraction of the machine's calibrated speed that the kind
reaches (`bench/estimate.py` measures both and prints how far the prediction is off).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..models.config import ModelConfig
from ..models.graph import head_tensors, layer_tensors
from ..models.lora import adapter_layout, linear_groups
from ..targets import Target
from .budget import within_budget
from .calibration import Calibration, calibrate
from .memory import predicted_footprints
from .options import CompileOptions
from .plan import Plan, cache_bytes, tensor_bytes, training_plan, writing_plan
from .recompute import PLACES, way_to_recompute

MIB = 1 << 20
EFFICIENCY = {
    "ternary forward": 0.77,
    "straight-through": 0.82,
    "head": 0.82,
    "lora": 0.65,
    "attention": 0.45,
}
"""Fraction of the calibrated speed that a kind of kernel reaches: of int8 the first, of float32
the others."""
STREAMS = 12
"""Passes over ``(T, H)`` float32 arrays of the elementwise kernels of a layer and step."""
CALL_SECONDS = {True: 6e-6, False: 4.5e-6}
"""Cost of a kernel call in training and in inference: the virtual machine, starting threads."""
KERNELS_A_LAYER = {True: 34, False: 14}
CACHED_BYTES = 20e6
"""What the processor's cache holds from one token to the next."""


@dataclass(frozen=True)
class Estimate:
    """A prediction.

    Attributes
    ----------
    peak_memory_mib : float
        Largest resident size of the process, with the mapped weight files, MiB; of a device's
        target the largest memory of the device.
    step_seconds : float or None
        One micro-batch of training, or one token of inference; None for a device, whose speed this
        machine does not tell.
    parameters : int
        Parameters of the model.
    rows : list of (str, float)
        The parts of the memory, MiB.
    plan : Plan
        What they are at each point of the work.
    options : CompileOptions
        What was asked for, lessened to the memory budget where there is one.
    """

    peak_memory_mib: float
    step_seconds: float | None
    parameters: int
    rows: list[tuple[str, float]]
    plan: Plan
    options: CompileOptions


def estimate(
    config: ModelConfig,
    target: Target,
    options: CompileOptions,
    train: bool = True,
    calibration: Calibration | None = None,
) -> Estimate:
    """Predict peak memory and time.

    Parameters
    ----------
    config : ModelConfig
        The model.
    target : Target
        Where it would run; the time is this machine's, so it holds for targets of its own kind.
    options : CompileOptions
        Sizes and formats.
    train : bool
        A training step, or writing one token of a text of `options.context` tokens.
    calibration : Calibration, optional
        The machine's speed; measured where it is not given.

    Returns
    -------
    Estimate
        The prediction.
    """
    options = within_budget(
        config, target, options, lambda of: predicted_footprints(config, target, of)
    )
    found = predicted_footprints(config, target, options)
    plan = (training_plan if train else writing_plan)(config, target, options, found)
    rows = [(name, size / MIB) for name, size in plan.at_peak() if size]
    seconds = None
    if target.family == "cpu":
        predict = _training_seconds if train else _token_seconds
        chosen = replace(options, recompute=way_to_recompute(config, target, options))
        seconds = predict(config, chosen, calibration or calibrate(target))
    return Estimate(
        peak_memory_mib=sum(mib for _, mib in rows),
        step_seconds=seconds,
        parameters=config.parameters,
        rows=rows,
        plan=plan,
        options=options,
    )


def _training_seconds(config: ModelConfig, options: CompileOptions, speed: Calibration) -> float:
    tokens, depth = options.context * options.micro_batch, config.num_layers
    product = 2.0 * config.linear_parameters * tokens
    adapter = 2.0 * adapter_layout(config, options.lora).parameters * depth * tokens
    again = _computed_again(config, options)
    # Scores and mixing: two products forward and five backward, half masked.
    products = 7 if "attention" in PLACES[options.recompute] else 9
    attention = products * 0.5 * 2.0 * tokens * options.context * config.attention_size * depth
    work = {
        "ternary forward": (1 + again) * product,
        "straight-through": product,
        "head": 2 * 2.0 * config.vocab_size * config.hidden_size * tokens,
        "lora": 5 * adapter,
        "attention": attention,
    }
    if config.dense:  # Forth as back, a product of float32 sums.
        work |= {"ternary forward": 0.0, "straight-through": (2 + again) * product}
    peak = dict.fromkeys(work, speed.float32) | {"ternary forward": speed.int8}
    seconds = sum(work[kind] / (EFFICIENCY[kind] * peak[kind]) for kind in work)
    streamed = STREAMS * tokens * (config.hidden_size + config.intermediate_size) * 4 * depth
    calls = depth * KERNELS_A_LAYER[True] * CALL_SECONDS[True]
    return seconds + streamed / speed.read + calls


def _computed_again(config: ModelConfig, options: CompileOptions) -> float:
    """Return the fraction of the projections' forward products that the backward pass repeats.

    Never the last one: its result is the layer's, and no use to the adjoint.
    """
    groups = linear_groups(config, ())
    sizes = {group.name: group.inputs * sum(group.outputs) for group in groups}
    kept = (*PLACES[options.recompute], groups[-1].name)
    return sum(size for name, size in sizes.items() if name not in kept) / sum(sizes.values())


def _token_seconds(config: ModelConfig, options: CompileOptions, speed: Calibration) -> float:
    """Every packed weight, the head, and the keys and values so far are read once a token."""
    layers = config.num_layers * tensor_bytes(layer_tensors(config, options.packing))
    ends = tensor_bytes(head_tensors(config, options.formats.head))
    plain = ends + cache_bytes(config, options)
    calls = config.num_layers * KERNELS_A_LAYER[False] * CALL_SECONDS[False]
    matrices = speed.read if config.dense else speed.ternary
    seconds = layers / matrices + plain / speed.read
    uncached = 1.0 - min(CACHED_BYTES / (layers + plain), 1.0)
    return uncached * seconds + calls
