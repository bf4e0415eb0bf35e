"""The memory plan: every buffer of a training step and of writing, in bytes, before anything runs.

A plan is a function of the model, the options and the footprints of the lowered functions. It is
printed by `fabric estimate` and `fabric inspect`, kept in the manifest, and held at run time: what
is measured is at most what was planned.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from ..models.config import ModelConfig
from ..models.graph import (
    TensorSpec,
    attention_shape,
    head_tensors,
    layer_tensors,
    rope_width,
)
from ..models.kernels import KV_CACHES, moment_type
from ..models.lora import adapter_layout
from ..targets import Target
from ..targets.cache_room import PAGE, cache_room
from .memory import PAGE as MEMORY_PAGE
from .options import CompileOptions
from .recompute import kept_sizes, way_to_recompute
from .sizes import tensor_bytes, type_bytes
from .workspaces import POOLED, Footprints, workspaces

MIB = 1 << 20
SLOTS = 2
"""Layers that a streamed bundle has in memory beside those that stay."""
PROCESS = {True: 70 * MIB, False: 62 * MIB}
"""Python, TVM's runtime, the command, a tokenizer and the data, in training and in writing, where a
processor computes."""
PROMPT = 512
"""Tokens of a prompt that are computed at once."""
SMALL = 64
"""Tensors of a few numbers, and what is left of the pages of others: each takes a page of CUDA's
memory. A layer has two more."""
POINTS = ("embedding", "forward", "head", "backward", "first layer", "update")
"""Moments of a step: the ends of its phases, but the backward pass where it begins as well."""


@dataclass(frozen=True)
class Row:
    """What one kind of buffer takes at each point, bytes."""

    name: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Rows over points in time.

    Attributes
    ----------
    points : tuple of str
        What the program does then.
    rows : tuple of Row
        The parts of the memory.
    """

    points: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def totals(self) -> list[int]:
        """Bytes at each point."""
        return [sum(row.sizes[i] for row in self.rows) for i in range(len(self.points))]

    @property
    def peak(self) -> int:
        """Most bytes at once."""
        return max(self.totals)

    def at_peak(self) -> list[tuple[str, int]]:
        """Return each row's bytes at the first point where most are held."""
        totals = self.totals
        place = totals.index(max(totals))
        return [(row.name, row.sizes[place]) for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Give what the manifest keeps."""
        return {
            "points": list(self.points),
            "rows": [[row.name, list(row.sizes)] for row in self.rows],
            "peak": self.peak,
        }


def resident_layers(config: ModelConfig, options: CompileOptions) -> int:
    """Return how many layers stay in memory."""
    wanted = options.resident_layers
    return config.num_layers if wanted is None else min(wanted, config.num_layers)


def outside_inputs(config: ModelConfig, options: CompileOptions) -> int:
    """Return how many layers' inputs wait outside of the memory."""
    return min(options.host_inputs, config.num_layers)


def evicted_layers(config: ModelConfig, options: CompileOptions) -> int:
    """Return how many of the layers that stay make room for the head while it computes.

    Those that pass through make room first.
    """
    layer, ends, resident, passing = _frozen(config, options)
    return min(-(-max(ends - passing, 0) // layer), resident)


def training_plan(
    config: ModelConfig, target: Target, options: CompileOptions, found: Footprints
) -> Plan:
    """Plan a training step of one micro-batch.

    Parameters
    ----------
    config : ModelConfig
        The model.
    target : Target
        Where it runs.
    options : CompileOptions
        Sizes and formats.
    found : mapping of str to Footprint
        Of the functions of one layer and of the ends, lowered for the target.
    """
    depth, tokens = config.num_layers, options.context * options.micro_batch
    state = 4 * tokens * config.hidden_size
    adapter = 4 * adapter_layout(config, options.lora).size
    way = way_to_recompute(config, target, options)
    kept = sum(kept_sizes(config, options, way))
    pooled = target.device in POOLED
    held = (depth,) * len(POINTS) if pooled else (0, depth, depth, depth, 1, 0)
    work, scratch = workspaces(found, target, state)
    # Rope, the batch, the seeds of dropout, and a handful of numbers.
    tables = 4 * (options.context * rope_width(config) + 3 * tokens + depth + 16)
    tables += (2 * depth + SMALL) * MEMORY_PAGE if target.device == "cuda" else 0
    rows = [
        *_fixed(config, target, options, train=True),
        _constant("adapter", depth * adapter),
        _constant("moments", 2 * depth * _moment_bytes(adapter // 4, options)),
        _constant("gradients", adapter * (depth if options.gradients == "all" else 1)),
        _constant("tokens and positions", tables),
        Row("layer inputs", tuple(count * state for count in _states(depth, target, options))),
        Row("kept activations", tuple(count * kept for count in held)),
        Row("workspace", work),
        Row("kernels' scratch", scratch),
    ]
    return Plan(POINTS, tuple(rows))


def writing_plan(
    config: ModelConfig, target: Target, options: CompileOptions, found: Footprints
) -> Plan:
    """Plan writing: a prompt, then tokens, up to `options.context` of both.

    The workspace of a prompt is a layer's in training, which has the same tensors, for as many
    tokens as are computed at once.
    """
    tokens = min(options.context, PROMPT)
    layer = found["layer_forward"]
    share = tokens / (options.context * options.micro_batch)
    prompt = int(share * (layer.planned + 4 * options.context * config.hidden_size))
    adapter = 4 * config.num_layers * adapter_layout(config, options.lora).size
    scratch = max(layer.scratch, found["decode"].scratch)
    decoded = found["decode"].planned
    cache, table = cache_bytes(config, options), 4 * _room(options) * config.head_dim
    # It grows layer by layer: the old one of a layer, and the old table, are there beside the new.
    grows = cache // config.num_layers + table if options.context > PAGE else 0
    rows = [
        *_fixed(config, target, options, train=False),
        Row("adapter", (adapter,) * 2),
        Row("key and value cache", (cache,) * 2),
        Row("growth of the cache", (grows,) * 2),
        Row("table of positions", (table,) * 2),
        Row("workspace", (prompt + 4 * config.vocab_size, decoded)),
        Row("kernels' scratch", (scratch,) * 2),
    ]
    points = ("prompt", "token")
    return Plan(points, tuple(Row(row.name, row.sizes[: len(points)]) for row in rows))


def bundle_plan(
    config: ModelConfig, target: Target, options: CompileOptions, found: Footprints
) -> dict[str, Any]:
    """Return what a bundle's manifest keeps: what was chosen, and the plans."""
    evicted = evicted_layers(config, options) if options.host_ends else 0
    return {
        "budget": options.memory_budget,
        "host_ends": options.host_ends,
        "evicted_layers": evicted,
        "host_inputs": outside_inputs(config, options),
        "resident_layers": resident_layers(config, options),
        "gradients": options.gradients,
        "recompute": way_to_recompute(config, target, options),
        "training": training_plan(config, target, options, found).to_dict(),
        "writing": writing_plan(config, target, options, found).to_dict(),
    }


def _room(options: CompileOptions) -> int:
    """Return the positions of the cache of one context."""
    return cache_room(options.context, sys.maxsize)


def cache_bytes(config: ModelConfig, options: CompileOptions) -> int:
    """Return the bytes of the keys and values of one context."""
    heads = attention_shape(config)
    types = KV_CACHES[options.kv_cache].fields(heads, 1, _room(options))
    return config.num_layers * sum(type_bytes(kind) for kind in types.values())


def _moment_bytes(size: int, options: CompileOptions) -> int:
    """Return the bytes of a moment of so many elements."""
    return type_bytes(moment_type(size, options.moments))


def _constant(name: str, size: int) -> Row:
    return Row(name, (size,) * len(POINTS))


def _fixed(config: ModelConfig, target: Target, options: CompileOptions, train: bool) -> list[Row]:
    """Return the rows of the program and of the weights."""
    layer, ends, resident, passing = _frozen(config, options)
    process = [_constant("Python and TVM's runtime", PROCESS[train])]
    stay = _constant("layers in memory", resident * layer)
    weights = [_constant("layers passing through", passing), _constant("embedding and head", ends)]
    if options.host_ends and train:
        left = (resident - evicted_layers(config, options)) * layer
        rows = tensor_bytes(embedded_rows(config, options))
        stay = Row("layers in memory", _at_the_head(resident * layer, left))
        weights = [
            Row("layers passing through", _at_the_head(passing, 0)),
            Row("embedding and head", _at_the_head(rows, rows + ends)),
        ]
    elif target.family == "cpu" and passing and train:
        # The pages of embedding and head are let go behind them, and those of two layers before.
        weights = [
            Row("layers passing through", (0, passing, 0, passing, passing, passing)),
            Row("embedding and head", (ends, 0, ends, 0, 0, 0)),
        ]
    return [
        *(process if target.family == "cpu" else []),
        stay,
        *weights,
    ]


def _frozen(config: ModelConfig, options: CompileOptions) -> tuple[int, int, int, int]:
    """Return the bytes of a layer and of both ends, how many layers stay, and the bytes of those
    that pass through."""
    layer = tensor_bytes(layer_tensors(config, options.packing))
    resident = resident_layers(config, options)
    ends = tensor_bytes(head_tensors(config, options.formats.head))
    return layer, ends, resident, layer * min(SLOTS, config.num_layers - resident)


def embedded_rows(config: ModelConfig, options: CompileOptions) -> list[TensorSpec]:
    """Return the rows of the embedding that a micro-batch's tokens take."""
    tokens = options.context * options.micro_batch
    return options.formats.head.tensors("rows", tokens, config.hidden_size)


def _at_the_head(size: int, there: int) -> tuple[int, ...]:
    """Return a row's bytes at each point, which differ where the head computes."""
    return tuple(there if point == "head" else size for point in POINTS)


def _states(depth: int, target: Target, options: CompileOptions) -> tuple[int, ...]:
    """Return how many layers' inputs are in memory at each point, the last output included."""
    outside = min(options.host_inputs, depth)
    # Beside those that are kept there are a layer's input and output, or an input that is read.
    kept, read = max(depth - outside + 1, 2), int(outside > 0)
    if target.device in POOLED:
        # What a pool has grown to, it keeps: every step but the first begins with it.
        return (kept + read,) * len(POINTS)
    return (1, kept, kept, kept + read, 1 + read, 0)
