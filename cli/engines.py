"""Where `fabric run` computes: on this machine, or on a device that `--device rpc://…` names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..runtime.budget import inference_engine, training_engine
from ..runtime.bundle import Bundle, open_bundle
from ..runtime.protocols import Generates, Tensors, Trains
from .output import Output
from .progress import PhaseBar


@dataclass(frozen=True)
class Engines:
    """Opens bundles and engines.

    Attributes
    ----------
    open_bundle : callable
        (path) -> Bundle.
    train : callable
        (bundle) -> Trains.
    write : callable
        (bundle, adapters, capacity) -> Generates.
    """

    open_bundle: Callable[[Path], Bundle]
    train: Callable[[Bundle], Trains]
    write: Callable[[Bundle, Sequence[tuple[Tensors, float]], int | None], Generates]


def local_engines(budget: int | None) -> Engines:
    """Return the engines of this machine, within so many bytes of memory where it is said."""
    return Engines(
        open_bundle,
        partial(training_engine, budget=budget),
        partial(inference_engine, budget=budget),
    )


def remote_engines(output: Output, device: str) -> Engines:
    """Return the engines of a device that is elsewhere.

    Parameters
    ----------
    output : Output
        Where it is told what is sent, and what becomes of a lost connection.
    device : str
        rpc://host:port/key.

    Raises
    ------
    RemoteError
        If `device` is not of that form; no connection is made yet.
    """
    from ..runtime.remote import RemoteInferenceEngine, RemoteTrainingEngine, parse_address

    address = parse_address(device)

    def opened(engine: Callable[..., Any], *arguments: Any) -> Any:
        with PhaseBar(output) as bar:
            return engine(*arguments, tell=output.aside, progress=bar)

    def train(bundle: Bundle) -> Trains:
        return opened(RemoteTrainingEngine, bundle, address)

    def write(
        bundle: Bundle, adapters: Sequence[tuple[Tensors, float]], capacity: int | None
    ) -> Generates:
        return opened(RemoteInferenceEngine, bundle, address, adapters, capacity)

    # The bundle is for the device, not for this machine.
    return Engines(partial(open_bundle, foreign=True), train, write)
