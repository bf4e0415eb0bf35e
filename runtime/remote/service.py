"""What a device does when it is asked: receives bundles, and runs the engines of one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...targets import FabricError, host_cpu, processor
from ...targets.ffi import tvm_ffi
from ..batch import Batch
from ..budget import inference_engine, training_engine
from ..bundle import Bundle
from ..device import named_devices
from ..engine import TrainingEngine
from ..inference import InferenceEngine
from ..kernel_bench import KernelBench
from ..measure import Measurement, Work
from .bundles import BundleStore
from .message import Arrays, Values

Reply = tuple[Values, Arrays]


class Service:
    """The calls of one session.

    Parameters
    ----------
    store : BundleStore
    """

    def __init__(self, store: BundleStore) -> None:
        self._store = store
        self._training: TrainingEngine | None = None
        self._writing: InferenceEngine | None = None
        self._measurement: Measurement | None = None
        self._kernels: KernelBench | None = None
        self._calls: dict[str, Callable[[dict[str, Any], dict[str, np.ndarray]], Reply]] = {
            "bundle.offer": self._offer,
            "bundle.named": self._named,
            "bundle.write": self._write,
            "bundle.finish": self._finish,
            "train.open": self._open_training,
            "train.initialize_adapter": self._initialize_adapter,
            "train.accumulate": self._accumulate,
            "train.update": self._update,
            "train.evaluate": self._evaluate,
            "train.state": lambda values, arrays: self._trained(tensors=self._trains.state()),
            "train.load_state": self._load_state,
            "train.adapter_tensors": self._adapter_tensors,
            "train.load_adapter_tensors": self._load_adapter_tensors,
            "write.open": self._open_writing,
            "write.reset": self._reset,
            "write.rewind": self._rewind,
            "write.prefill": self._prefill,
            "write.decode": self._decode,
            "measure.open": self._open_measurement,
            "measure.round": self._measure_round,
            "device.describe": self._describe,
            "kernel.take": self._take_kernel,
            "kernel.compare": self._compare_kernel,
        }

    def handle(self, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> Reply:
        """Do what ``values["call"]`` names.

        Returns
        -------
        values, arrays
            The answer.

        Raises
        ------
        FabricError
            If it can't be done.
        """
        name = values.pop("call")
        if name not in self._calls:
            raise FabricError(
                f"this device does not know the call {name!r}.",
                "Install the same version of bitfabric here and on the device.",
            )
        return self._calls[name](values, arrays)

    def _offer(self, values: dict[str, Any], arrays: Arrays) -> Reply:
        return {"there": self._store.offer(values["manifest"])}, {}

    def _named(self, values: dict[str, Any], arrays: Arrays) -> Reply:
        self._store.named(values["path"], values["digest"])
        return {}, {}

    def _write(self, values: dict[str, Any], arrays: Arrays) -> Reply:
        self._store.write(values["file"], values["offset"], arrays["piece"])
        return {}, {}

    def _finish(self, values: dict[str, Any], arrays: Arrays) -> Reply:
        self._store.finish()
        return {}, {}

    @property
    def _bundle(self) -> Bundle:
        if self._store.bundle is None:
            raise FabricError("no bundle has been sent.", "Install the same version on both.")
        return self._store.bundle

    @property
    def _trains(self) -> TrainingEngine:
        if self._training is None:
            raise FabricError("no training is open.", "Install the same version on both.")
        return self._training

    @property
    def _writes(self) -> InferenceEngine:
        if self._writing is None:
            raise FabricError("no model is open.", "Install the same version on both.")
        return self._writing

    def _trained(self, result: float | None = None, tensors: Arrays | None = None) -> Reply:
        memory = self._trains.device_memory_mib
        return {"result": result, "device_memory_mib": memory}, tensors or {}

    def _open_training(self, values: dict[str, Any], arrays: Arrays) -> Reply:
        self._training = training_engine(self._bundle)
        return self._trained()

    def _initialize_adapter(self, values: dict[str, Any], arrays: Arrays) -> Reply:
        self._trains.initialize_adapter(values["seed"])
        return self._trained()

    def _accumulate(self, values: dict[str, Any], arrays: Arrays) -> Reply:
        batch = Batch(**arrays)
        return self._trained(
            self._trains.accumulate(batch, values["inverse_count"], values["seed"])
        )

    def _update(self, values: dict[str, Any], arrays: Arrays) -> Reply:
        return self._trained(self._trains.update(**values))

    def _evaluate(self, values: dict[str, Any], arrays: Arrays) -> Reply:
        return self._trained(self._trains.evaluate(Batch(**arrays)))

    def _load_state(self, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> Reply:
        self._trains.load_state(arrays)
        return self._trained()

    def _adapter_tensors(self, values: dict[str, Any], arrays: Arrays) -> Reply:
        return self._trained(tensors=self._trains.adapter_tensors())

    def _load_adapter_tensors(self, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> Reply:
        self._trains.load_adapter_tensors(arrays)
        return self._trained()

    def _open_writing(self, values: dict[str, Any], arrays: Arrays) -> Reply:
        adapters: list[tuple[dict[str, np.ndarray], float]] = [({}, s) for s in values["scales"]]
        for key, array in arrays.items():
            index, _, name = key.partition("/")
            adapters[int(index)][0][name] = array
        self._writing = inference_engine(self._bundle, adapters, capacity=values["capacity"])
        return {"capacity": self._writing.capacity}, {}

    def _reset(self, values: dict[str, Any], arrays: Arrays) -> Reply:
        self._writes.reset()
        return {}, {}

    def _rewind(self, values: dict[str, Any], arrays: Arrays) -> Reply:
        self._writes.rewind(values["position"])
        return {}, {}

    def _prefill(self, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> Reply:
        return self._written(self._writes.prefill(arrays["tokens"].tolist()))

    def _decode(self, values: dict[str, Any], arrays: Arrays) -> Reply:
        return self._written(self._writes.decode(values["token"]))

    def _written(self, logits: np.ndarray) -> Reply:
        return {"position": self._writes.position}, {"logits": logits}

    def _open_measurement(self, values: dict[str, Any], arrays: Arrays) -> Reply:
        self._measurement = Measurement(self._bundle, Work(**values))
        return {"open": True}, {}

    def _measure_round(self, values: dict[str, Any], arrays: Arrays) -> Reply:
        if self._measurement is None:
            raise FabricError("no measurement is open.", "Install the same version on both.")
        return {"result": self._measurement.round()}, {}

    def _describe(self, values: dict[str, Any], arrays: Arrays) -> Reply:
        if values["kind"] != "cpu":
            return {"devices": named_devices(values["kind"])}, {}
        name, detail, threads = processor()
        known = {"name": name, "detail": detail, "threads": threads}
        return {"target": host_cpu().name, **known}, {}

    def _take_kernel(self, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> Reply:
        if self._kernels is None:
            self._kernels = KernelBench(values["kind"])
        return self._kernels.take(_kernel(arrays["library"]), values["arguments"]), {}

    def _compare_kernel(self, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> Reply:
        if self._kernels is None:
            raise FabricError("no kernel was given.", "Install the same version on both.")
        return self._kernels.compare(_kernel(arrays["library"]), **values), {}


def _kernel(library: np.ndarray) -> Callable[..., Any]:
    """Load a library, uint8 [n], and return its kernel."""
    with tempfile.TemporaryDirectory(prefix="fabric-") as folder:
        path = Path(folder) / "kernel.so"
        path.write_bytes(library.tobytes())
        # What is loaded stays, though its file goes.
        return tvm_ffi.load_module(str(path))["main"]
