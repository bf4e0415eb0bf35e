"""The inference engine: prompts in, logits out, over a key and value cache."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..targets import FabricError
from ..targets.cache_room import cache_room, whole_vectors
from ..targets.ffi import tvm_ffi
from .bundle import Bundle
from .device import Machine
from .engine import Tensors, end_tensors, layer_tensors
from .memory_space import MemorySpace, Tensor, Windows

CHUNK = 512
"""Tokens of a prompt that go through the model at once: bounds the workspace."""


class InferenceEngine:
    """Logits for growing sequences.

    Parameters
    ----------
    bundle : Bundle
        An open bundle.
    adapters : sequence of (tensors, multiplier)
        Adapters as :meth:`TrainingEngine.adapter_tensors` names them, each with its full factor:
        its scale times its weight in the mix.
    capacity : int
        Most tokens of a sequence, prompt and answer together. The cache grows to it by pages.
    batch : int
        Number of sequences.

    Attributes
    ----------
    room : int
        Positions that the cache has by now.
    """

    def __init__(
        self,
        bundle: Bundle,
        adapters: Sequence[tuple[Tensors, float]] = (),
        capacity: int = 2048,
        batch: int = 1,
    ) -> None:
        self.bundle, self.batch = bundle, batch
        # What whole vectors have to spare may be used, but not beyond what the model knows.
        self._most = whole_vectors(capacity)
        self.capacity = min(self._most, max(capacity, int(bundle.config["max_context"])))
        self._machine = Machine(bundle)
        self._memory = memory = self._machine.memory
        self._positions = np.zeros(batch, np.int32)
        self._check_cache(max(_bytes(*field) for field in self._fields(self._most)))
        names = ("token", "sequence", "position", "select")
        self._one = {name: memory.zeros((1,), "int32") for name in names}
        self._open(end_tensors(bundle, memory), stacked_adapters(bundle, adapters, memory))
        self.room = cache_room(1, self._most)
        layers = range(bundle.config["num_layers"])
        self._caches = [self._new_cache(self.room) for _ in layers]
        self._bind(self._table())

    def _open(self, ends: list[Windows], adapters: list[list[Tensor]]) -> None:
        """Take what stays in its place as long as the engine lives."""
        self._fixed = [*ends, layer_tensors(self.bundle, self._memory), adapters]

    def _bind(self, rope: Tensor) -> None:
        """Bind what stays in its place until the cache grows, so that a token is one call."""
        self._model = [rope, *self._fixed, self._caches]
        arguments = [block.tensor for block in self._one.values()]
        self._decode = self._machine.bind("decode", [*arguments, *self._model])

    def _unbind(self) -> None:
        """Let go of the cache, so that what it grows out of is free again."""
        self._model, self._decode = [], None
        self._machine.unbind("decode")

    def _table(self) -> Tensor:
        """Return the table of as many positions as the cache has."""
        return self._machine.lasting("rope_cache", tvm_ffi.Shape((self.room,)))

    def _fields(self, room: int) -> list[tuple[tuple[int, ...], str]]:
        """Return shapes and types of a layer's cache of so many positions."""
        extents = {"S": self.batch, "M": room}
        return [
            (tuple(extents.get(e, e) for e in tensor["shape"]), tensor["dtype"])
            for tensor in self.bundle.manifest["cache"]["tensors"]
        ]

    def _new_cache(self, room: int) -> list[Tensor]:
        return [self._memory.empty(*field) for field in self._fields(room)]

    def _grow(self, tokens: int) -> None:
        """Make room for so many tokens of a sequence, by whole pages."""
        room = cache_room(tokens, self._most)
        if room <= self.room:
            return
        self._unbind()
        grow = self._machine["grow_cache"]
        # One layer after the other, so that no more than one is there twice.
        for layer, old in enumerate(self._caches):
            new = self._new_cache(room)
            grow(*old, *new)
            self._caches[layer] = new
        self.room = room
        self._bind(self._table())

    @property
    def memory(self) -> MemorySpace:
        """Where the tensors live."""
        return self._memory

    @property
    def device_memory_mib(self) -> float:
        """Most memory of a device held at once, MiB; 0 where the processor itself computes."""
        return self._memory.peak_mib()

    def _check_cache(self, size: int) -> None:
        """Refuse a cache of which one tensor, of some bytes, is more than the kernels address."""
        if size > self._memory.limit:
            raise FabricError(
                f"The keys of {self.batch} x {self.capacity} tokens take {size >> 20} MiB a layer; "
                f"this bundle's kernels address {self._memory.limit >> 20} MiB at once.",
                "Ask for a smaller --capacity, or for fewer sequences.",
            )

    @property
    def position(self) -> int:
        """Tokens so far of sequence 0."""
        return int(self._positions[0])

    def reset(self, sequence: int | None = None) -> None:
        """Forget every sequence, or one."""
        self._positions[slice(None) if sequence is None else sequence] = 0

    def rewind(self, position: int) -> None:
        """Forget what sequence 0 has after its first `position` tokens.

        Raises
        ------
        FabricError
            If it has not so many.
        """
        if not 0 <= position <= self._positions[0]:
            raise FabricError(
                f"The cache has {self._positions[0]} tokens and can't go back to {position}.",
                "Go back to a place that was read.",
            )
        # What lies past the position is never read, so there is nothing to clear.
        self._positions[0] = position

    def _room(self, sequence: int, count: int) -> None:
        needed = self._positions[sequence] + count
        window = self.bundle.config.get("sliding_window", 0)
        if window and needed > window:
            raise FabricError(
                f"The text needs {needed} tokens; layers of this model attend to the last {window} "
                "alone, and its cache is without such a limit.",
                "Shorten the prompt, or ask for fewer new tokens.",
            )
        if needed > self.capacity:
            raise FabricError(
                f"The text needs {needed} tokens; there is room for {self.capacity}.",
                "Shorten the prompt, or ask for fewer new tokens.",
            )
        self._grow(int(self._positions[sequence]) + count)

    def prefill(self, tokens: Sequence[int], sequence: int = 0) -> np.ndarray:
        """Append tokens to a sequence and return the ``(V,)`` float32 logits after the last.

        Raises
        ------
        FabricError
            If the sequence would outgrow the capacity, or there is no token.
        """
        if not len(tokens):
            raise FabricError("The prompt is empty.", "Write something after --prompt.")
        return self._append(tokens, sequence, every=False)[-1]

    def score(self, tokens: Sequence[int] | np.ndarray, sequence: int = 0) -> np.ndarray:
        """Append tokens to a sequence and return ``(n, V)`` float32 logits, after each of them.

        Raises
        ------
        FabricError
            If the sequence would outgrow the capacity.
        """
        return self._append(tokens, sequence, every=True)

    def _append(self, tokens: Sequence[int] | np.ndarray, sequence: int, every: bool) -> np.ndarray:
        """Append tokens, a chunk at a time; the logits of every one, or of the last."""
        self._room(sequence, len(tokens))
        logits, chunk = [], CHUNK
        if every:
            row = 4 * self.bundle.config["vocab_size"]
            chunk = max(min(CHUNK, self._memory.limit // row), 1)
        for begin in range(0, len(tokens), chunk):
            piece = np.asarray(tokens[begin : begin + chunk], np.int32)
            count, first = len(piece), self._positions[sequence]
            position = np.arange(first, first + count, dtype=np.int32)
            select = range(count) if every else [count - 1]
            logits.append(self._forward(piece, np.full(count, sequence), position, select))
            self._positions[sequence] += count
        return np.concatenate(logits)

    def decode(self, token: int) -> np.ndarray:
        """Append one token to sequence 0 and return the ``(V,)`` float32 logits after it."""
        self._room(0, 1)
        self._one["token"].write(np.int32(token))
        self._one["position"].write(self._positions[0])
        logits = self._memory.read(self._decode()).reshape(-1)
        self._positions[0] += 1
        return logits

    def decode_batch(self, tokens: Sequence[int]) -> np.ndarray:
        """Append one token to every sequence and return ``(batch, V)`` float32 logits."""
        for sequence in range(self.batch):
            self._room(sequence, 1)
        every = np.arange(self.batch)
        logits = self._forward(np.asarray(tokens), every, self._positions, every)
        self._positions += 1
        return logits

    def _forward(
        self,
        tokens: np.ndarray,
        sequence: np.ndarray,
        position: np.ndarray,
        select: Sequence[int] | np.ndarray,
    ) -> np.ndarray:
        arrays = []
        for values in (tokens, sequence, position, np.asarray(select)):
            block = self._memory.zeros((len(values),), "int32")
            block.write(values)
            arrays.append(block.tensor)
        return self._memory.read(self._logits(*arrays))

    def _logits(self, tokens: Tensor, sequence: Tensor, position: Tensor, select: Tensor) -> Tensor:
        """Run the model; the ``(s, V)`` logits after the selected tokens."""
        return self._machine["prefill"](tokens, sequence, position, select, *self._model)


def _bytes(shape: Sequence[int], dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def stacked_adapters(
    bundle: Bundle, adapters: Sequence[tuple[Tensors, float]], memory: MemorySpace
) -> list[list[Tensor]]:
    """Return for each layer the factors ``A (S, R, K)`` and ``B (R, N)`` of all adapters at once.

    Adapters add up, so their ranks are concatenated: R is the sum of them, and each B carries its
    adapter's factor. No adapter at all is one of rank 1 that is zero.
    """
    layout = bundle.manifest["adapter"]
    groups = _groups(layout)
    layers = []
    for layer in range(bundle.config["num_layers"]):
        factors = []
        for members in groups:
            parts = [_group_factors(layer, members, t, scale) for t, scale in adapters]
            if not parts:
                inputs, rows = members[0]["inputs"], sum(m["rows"] for m in members)
                parts = [(np.zeros((len(members), 1, inputs)), np.zeros((1, rows)))]
            a = np.concatenate([part[0] for part in parts], axis=1)
            b = np.concatenate([part[1] for part in parts], axis=0)
            for values in (a, b):
                block = memory.zeros(values.shape)
                block.write(values)
                factors.append(block.tensor)
        layers.append(factors)
    return layers


def _groups(layout: dict) -> list[list[dict]]:
    """Return the adapted projections that share an input, group by group, in buffer order."""
    factors = [factor for factor in layout["factors"] if factor["factor"] == "a"]
    bounds = [factor["offset"] for factor in factors]
    groups: list[list[dict]] = [[] for _ in bounds]
    for module in layout["modules"]:
        index = max(i for i, bound in enumerate(bounds) if module["a_offset"] >= bound)
        groups[index].append(module)
    return groups


def _group_factors(
    layer: int, members: list[dict], tensors: Tensors, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return one adapter's A and scaled B of a group; a projection it lacks contributes zeros."""
    paths = [f"model.layers.{layer}.{member['path']}" for member in members]
    rank = max((len(tensors[f"{p}.lora_A"]) for p in paths if f"{p}.lora_A" in tensors), default=1)
    a = np.zeros((len(members), rank, members[0]["inputs"]), np.float32)
    b = np.zeros((rank, sum(member["rows"] for member in members)), np.float32)
    column = 0
    for index, (path, member) in enumerate(zip(paths, members, strict=True)):
        if f"{path}.lora_A" in tensors:
            r = len(tensors[f"{path}.lora_A"])
            a[index, :r] = tensors[f"{path}.lora_A"]
            b[:r, column : column + member["rows"]] = tensors[f"{path}.lora_B"].T * scale
        column += member["rows"]
    return a, b
