"""The engines of a device that is elsewhere, for whoever trains or writes on this machine."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..batch import Batch
from ..bundle import Bundle
from ..protocols import Tensors
from .address import Address
from .exchange import Call, Patience
from .station import Progress, Station

SNAPSHOT_STEPS = 64
"""Steps after which the state is fetched where nobody has asked for it: bounds what is repeated."""


def _silent(text: str) -> None:
    """Tell nobody."""


class RemoteTrainingEngine:
    """A `TrainingEngine` on a device; see `runtime.protocols.Trains`.

    Parameters
    ----------
    bundle : Bundle
        Open on this machine, for whatever target.
    address : Address
    tell : callable
        Is given a sentence where a device was lost and what is done about it.
    progress : callable or None
        Is given phase and share (0 to 1) of the work until the engine is open.
    patience : Patience or None

    Raises
    ------
    RemoteError
        If no device answers, or it can't run the bundle; later, from every method, if none is left.
    """

    def __init__(
        self,
        bundle: Bundle,
        address: Address,
        tell: Callable[[str], None] = _silent,
        progress: Progress | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._station = Station(bundle, address, Call("train.open"), tell, progress, patience)
        self._memory_mib = 0.0
        self.close = weakref.finalize(self, self._station.close)
        """Ends the session; the device is then free for others."""

    def _call(self, name: str, values: dict[str, Any], arrays: Any = None) -> Any:
        answer = self._station.call(Call(f"train.{name}", values, arrays or {}))
        self._memory_mib = answer.values["device_memory_mib"]
        return answer

    def _begin_again(self, call: Call, later: Sequence[Call] = ()) -> None:
        """Note a call on which everything depends from now on."""
        self._station.journal = [call, *later]

    @property
    def device_memory_mib(self) -> float:
        """Most memory of the device held at once, MiB; 0 where its processor computes."""
        return self._memory_mib

    def initialize_adapter(self, seed: int) -> None:
        """Start from A random (Kaiming uniform) and B zero."""
        values = {"seed": seed}
        self._call("initialize_adapter", values)
        self._begin_again(Call("train.initialize_adapter", values))

    def accumulate(self, batch: Batch, inverse_count: float, seed: int) -> float:
        """Add the gradients of `inverse_count` * sum of losses; give the sum of losses."""
        values = {"inverse_count": float(inverse_count), "seed": int(seed)}
        loss = self._call("accumulate", values, vars(batch)).values["result"]
        self._station.journal.append(Call("train.accumulate", values, vars(batch)))
        return loss

    def update(
        self,
        *,
        learning_rate: float,
        step: int,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float = 0.0,
    ) -> float:
        """Take one AdamW step, zero the gradients; give their norm before clipping."""
        values = {
            "learning_rate": float(learning_rate),
            "step": int(step),
            "beta1": beta1,
            "beta2": beta2,
            "epsilon": epsilon,
            "weight_decay": weight_decay,
            "clip_norm": clip_norm,
        }
        norm = self._call("update", values).values["result"]
        journal = self._station.journal
        journal.append(Call("train.update", values))
        if sum(call.name == "train.update" for call in journal) >= SNAPSHOT_STEPS:
            self.state()
        return norm

    def evaluate(self, batch: Batch) -> float:
        """Give the sum of the losses of a micro-batch."""
        return self._call("evaluate", {}, vars(batch)).values["result"]

    def state(self) -> Tensors:
        """Give adapter, moment1 and moment2, float32 [num_layers, n]."""
        state = self._call("state", {}).arrays
        # Gradients are no part of a state: those since the last update are computed again.
        pending: list[Call] = []
        for call in self._station.journal:
            pending = [*pending, call] if call.name == "train.accumulate" else []
        copies = {name: array.copy() for name, array in state.items()}
        self._begin_again(Call("train.load_state", {}, copies), pending)
        return state

    def load_state(self, state: Tensors) -> None:
        """Take what `state` gave."""
        self._load("load_state", state)

    def adapter_tensors(self) -> Tensors:
        """Give lora_A [rank, in] and lora_B [out, rank] of every module, float32."""
        return self._call("adapter_tensors", {}).arrays

    def load_adapter_tensors(self, tensors: Tensors) -> None:
        """Take what `adapter_tensors` gave."""
        self._load("load_adapter_tensors", tensors)

    def _load(self, name: str, tensors: Tensors) -> None:
        copies = {key: np.array(array) for key, array in tensors.items()}
        self._call(name, {}, copies)
        self._begin_again(Call(f"train.{name}", {}, copies))


class RemoteInferenceEngine:
    """An `InferenceEngine` of one sequence on a device; see `runtime.protocols.Generates`.

    Parameters
    ----------
    bundle : Bundle
        Open on this machine, for whatever target.
    address : Address
    adapters : sequence of (tensors, multiplier)
        As `InferenceEngine` takes them.
    capacity : int or None
        Most tokens of a sequence, prompt and answer together; see `inference_engine`.
    tell, progress, patience
        As in `RemoteTrainingEngine`.

    Raises
    ------
    RemoteError
        If no device answers, or it can't run the bundle; later, from every method, if none is left.
    """

    def __init__(
        self,
        bundle: Bundle,
        address: Address,
        adapters: Sequence[tuple[Tensors, float]] = (),
        capacity: int | None = None,
        tell: Callable[[str], None] = _silent,
        progress: Progress | None = None,
        patience: Patience | None = None,
    ) -> None:
        values = {"capacity": capacity, "scales": [float(scale) for _, scale in adapters]}
        arrays = {
            f"{index}/{name}": np.asarray(array, np.float32)
            for index, (tensors, _) in enumerate(adapters)
            for name, array in tensors.items()
        }
        opening = Call("write.open", values, arrays)
        self._station = Station(bundle, address, opening, tell, progress, patience)
        self._position = 0
        self.close = weakref.finalize(self, self._station.close)
        """Ends the session; the device is then free for others."""

    @property
    def capacity(self) -> int:
        """Number of tokens that the cache can hold."""
        return self._station.opened.values["capacity"]

    @property
    def position(self) -> int:
        """Number of tokens in the cache."""
        return self._position

    def reset(self) -> None:
        """Empty the cache."""
        self._station.call(Call("write.reset"))
        self._station.journal, self._position = [], 0

    def rewind(self, position: int) -> None:
        """Forget what the cache has after its first `position` tokens."""
        call = Call("write.rewind", {"position": int(position)})
        self._station.call(call)
        self._station.journal.append(call)
        self._position = int(position)

    def _append(self, call: Call) -> npt.NDArray[np.float32]:
        """Append tokens, the way they are appended again if need be: same calls, same bits."""
        answer = self._station.call(call)
        self._station.journal.append(call)
        self._position = answer.values["position"]
        return answer.arrays["logits"]

    def prefill(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Append tokens; give the logits [vocab_size] that follow the last."""
        return self._append(Call("write.prefill", {}, {"tokens": np.array(tokens, np.int32)}))

    def decode(self, token: int) -> npt.NDArray[np.float32]:
        """Append one token; give the logits [vocab_size] that follow it."""
        return self._append(Call("write.decode", {"token": int(token)}))
