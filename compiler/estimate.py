"""Memory and time of a model on a target, predicted before any code is generated.

Memory is the real plan: the module is lowered for one layer of the model's own shape, and what its
functions allocate is read off; what grows with depth is counted. Time is work over rate: the
operations of each kind of kernel, at the fraction of the machine's calibrated speed that the kind
reaches (`bench/estimate.py` measures both and prints how far the prediction is off).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..models.config import ModelConfig
from ..models.graph import HeadFormat, TensorSpec, head_tensors, layer_tensors
from ..models.lora import adapter_layout
from ..targets import Target
from .calibration import Calibration, calibrate
from .memory import function_workspaces
from .options import CompileOptions
from .pipeline import apply_schedules, build_graph, fuse, lower

MIB = 1 << 20
PROCESS_MIB = {True: 58.0, False: 52.0}
"""Python, TVM's runtime, the tokenizer and the loop, in training and in inference."""
SCRATCH_MIB = 4.0
"""What the kernels allocate inside: quantised inputs, panels, one chunk of logits."""
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
    """

    peak_memory_mib: float
    step_seconds: float | None
    parameters: int
    rows: list[tuple[str, float]]


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
    rows = _training_rows(config, target, options) if train else _inference_rows(config, options)
    seconds = None
    if target.family == "cpu":
        rows = [("Python and TVM's runtime", PROCESS_MIB[train]), *rows]
        predict = _training_seconds if train else _token_seconds
        seconds = predict(config, options, calibration or calibrate(target))
    return Estimate(
        peak_memory_mib=sum(mib for _, mib in rows),
        step_seconds=seconds,
        parameters=config.parameters,
        rows=rows,
    )


def _bytes(specs: list[TensorSpec]) -> int:
    sizes = {"int8": 1, "float16": 2, "float32": 4, "int32": 4}
    total = 0
    for spec in specs:
        size = sizes[spec.dtype]
        for extent in spec.shape:
            size *= extent
        total += size
    return total


def _weight_rows(config: ModelConfig, options: CompileOptions) -> list[tuple[str, float]]:
    layers = config.num_layers * _bytes(layer_tensors(config))
    ends = _bytes(head_tensors(config, HeadFormat(options.head)))
    return [("ternary weights", layers / MIB), ("embedding and head", ends / MIB)]


def _training_rows(
    config: ModelConfig, target: Target, options: CompileOptions
) -> list[tuple[str, float]]:
    module, _ = apply_schedules(fuse(build_graph(replace(config, num_layers=1), options)), target)
    plan = function_workspaces(lower(module))
    tokens = options.context * options.micro_batch
    adapter = config.num_layers * adapter_layout(config, options.lora).size * 4
    states = (config.num_layers + 1) * tokens * config.hidden_size * 4
    largest = max(plan["layer_vjp"] + plan["layer_forward"], plan["head_loss_vjp"])
    return [
        *_weight_rows(config, options),
        ("adapter, gradients, moments", 4 * adapter / MIB),
        ("layer inputs", states / MIB),
        ("workspace", largest / MIB + SCRATCH_MIB),
    ]


def _inference_rows(config: ModelConfig, options: CompileOptions) -> list[tuple[str, float]]:
    adapter = config.num_layers * adapter_layout(config, options.lora).size * 4
    return [
        *_weight_rows(config, options),
        ("adapter", adapter / MIB),
        ("key and value cache", _cache_bytes(config, options) / MIB),
        ("workspace", SCRATCH_MIB),
    ]


def _training_seconds(config: ModelConfig, options: CompileOptions, speed: Calibration) -> float:
    tokens, depth = options.context * options.micro_batch, config.num_layers
    product = 2.0 * config.ternary_parameters * tokens
    adapter = 2.0 * adapter_layout(config, options.lora).parameters * depth * tokens
    # Scores and mixing, forward twice (once recomputed) and five products backward, half masked.
    attention = 9 * 0.5 * 2.0 * tokens * options.context * config.attention_size * depth
    work = {
        "ternary forward": 2 * product,
        "straight-through": product,
        "head": 2 * 2.0 * config.vocab_size * config.hidden_size * tokens,
        "lora": 5 * adapter,
        "attention": attention,
    }
    peak = dict.fromkeys(work, speed.float32) | {"ternary forward": speed.int8}
    seconds = sum(work[kind] / (EFFICIENCY[kind] * peak[kind]) for kind in work)
    streamed = STREAMS * tokens * (config.hidden_size + config.intermediate_size) * 4 * depth
    calls = depth * KERNELS_A_LAYER[True] * CALL_SECONDS[True]
    return seconds + streamed / speed.read + calls


def _token_seconds(config: ModelConfig, options: CompileOptions, speed: Calibration) -> float:
    """Every packed weight, the head, and the keys and values so far are read once a token."""
    (_, layers), (_, ends) = _weight_rows(config, options)
    plain = ends * MIB + _cache_bytes(config, options)
    calls = config.num_layers * KERNELS_A_LAYER[False] * CALL_SECONDS[False]
    seconds = layers * MIB / speed.ternary + plain / speed.read
    uncached = 1.0 - min(CACHED_BYTES / (layers * MIB + plain), 1.0)
    return uncached * seconds + calls


def _cache_bytes(config: ModelConfig, options: CompileOptions) -> int:
    """Return the bytes of the float32 keys and values of one context."""
    return 2 * config.num_layers * options.context * config.num_kv_heads * config.head_dim * 4
