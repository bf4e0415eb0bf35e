"""The native libraries that let TVM's runtime use a device it has no backend for."""

from __future__ import annotations

import ctypes
import json
import os
import threading
from pathlib import Path
from typing import Any

from ..targets import APIS, FabricError
from ..targets.ffi import tvm_ffi
from . import cuda, metal
from .cuda.ledger import is_possible
from .library import load_runtime
from .native import build

OF_TVM = {cuda.KIND: cuda, metal.KIND: metal}
"""The kinds of devices that TVM's package has a library for, and what loads it."""
_loaded: dict[str, Path] = {}
_lock = threading.Lock()


def load_backend(kind: str) -> None:
    """Load the library of a kind of device ("opencl", "vulkan") into TVM's runtime, once.

    It lies beside its sources where the installation built it. Where it does not, or was built from
    other sources or for other versions of TVM, it is built into the cache folder, which takes about
    ten seconds, once. Loading it needs no driver; using the device does. Those of CUDA and Metal
    are TVM's own, which do need the driver.

    Raises
    ------
    FabricError
        If there is no such backend, or it has to be built and a compiler or a package is missing.
    """
    with _lock:
        if kind in _loaded:
            return
        _check(kind)
        if kind in OF_TVM:
            ledger = _ledger() if kind == cuda.KIND else None
            _loaded[kind] = cuda.load(ledger) if ledger is not None else OF_TVM[kind].load()
            OF_TVM[kind].register()
            return
        try:
            path = _find(kind)
            if path is None:
                path = _cached(kind)
                build.build(kind, path)
            load_runtime()
            ctypes.CDLL(str(path))
        except build.BuildError as error:
            raise FabricError(error.cause, error.remedy) from error
        except OSError as error:
            raise FabricError(
                f"The {kind} backend can't be loaded: {error}",
                "Install bitfabric anew, or remove its cache folder, and try again.",
            ) from error
        _loaded[kind] = path


def _ledger() -> Path | None:
    """Return the library that counts what is taken of CUDA's memory; None where there can't be one.

    It is an account and a bound: a machine without a compiler trains without it.
    """
    if not is_possible():
        return None
    name = cuda.KIND
    for path in (build.FOLDER / build.library_name(name), _cached(name)):
        if build.is_current(path, name):
            return path
    try:
        build.build(name, path)
    except (build.BuildError, OSError):
        return None
    return path


def backend_status(kind: str) -> dict[str, Any]:
    """Return where a backend stands, for ``fabric doctor``; nothing is built or loaded.

    Returns
    -------
    dict
        ``kind``; ``loaded`` (bool); ``library`` (its path, or None where it is yet to be built);
        ``origin`` ("installed", "cache", "TVM's" or None); ``compiler`` (path or None);
        ``problem`` and ``remedy`` (a sentence each, or None where it is there or can be built).
    """
    status: dict[str, Any] = {
        "kind": kind,
        "loaded": kind in _loaded,
        "library": None,
        "origin": None,
        "compiler": None,
        "problem": None,
        "remedy": None,
    }
    try:
        _check(kind)
        path = _loaded.get(kind) or _find(kind)
        if path is not None:
            status["library"] = str(path)
            status["origin"] = _origin(kind, path)
        else:
            build.include_folders()
            status["compiler"] = build.compiler()
    except (build.BuildError, FabricError) as error:
        status["problem"], status["remedy"] = error.cause, error.remedy
    return status


def backend_function(name: str) -> Any:
    """Return a global function of a loaded backend, such as ``bitfabric.opencl.memory``."""
    return tvm_ffi.get_global_func(name)


def devices(kind: str) -> list[dict[str, Any]]:
    """Return what every device of a kind says of itself, in the order of their indices.

    The backend is loaded for it. Sizes are in bytes. GPUs come first, then accelerators, then
    processors.

    Raises
    ------
    FabricError
        If the backend can't be loaded, or there is no driver or no device.
    """
    load_backend(kind)
    found = json.loads(backend_function(f"bitfabric.{kind}.devices")())
    if isinstance(found, dict):
        api = APIS[kind]
        raise FabricError(f"{api.name} can't be used: {found['error']}", api.install)
    return found


def expect_any_module(kind: str) -> None:
    """Let devices of a kind be made with all features that they have.

    Else they are made with what the modules need that are loaded before the first tensor: this is
    for whoever keeps tensors on a device while modules come and go. The backend is loaded.
    """
    expect = tvm_ffi.get_global_func(f"bitfabric.{kind}.expect_any", allow_missing=True)
    if expect is not None:
        expect()


def _check(kind: str) -> None:
    if kind not in (*OF_TVM, *build.KINDS):
        raise FabricError(
            f"There is no native backend for {kind}.",
            f"There are: {', '.join((*OF_TVM, *build.KINDS))}.",
        )


def _origin(kind: str, path: Path) -> str:
    if kind in OF_TVM:
        return "TVM's"
    return "installed" if path.parent == build.FOLDER else "cache"


def _find(kind: str) -> Path | None:
    """Return a library that fits, from the installation or the cache."""
    if kind in OF_TVM:
        return OF_TVM[kind].library()
    for path in (build.FOLDER / build.library_name(kind), _cached(kind)):
        if build.is_current(path, kind):
            return path
    return None


def _cached(kind: str) -> Path:
    """Return where a library that is built on first need lies: one folder for each key."""
    named = os.environ.get("BITFABRIC_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (
        Path(named) if named else (Path(base) if base else Path.home() / ".cache") / "bitfabric"
    )
    return folder / "native" / build.build_key(kind).replace(" ", "_") / build.library_name(kind)
