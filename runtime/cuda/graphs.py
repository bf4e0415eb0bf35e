"""Kernels that are launched again and again with the same arguments, as one CUDA graph.

A function of TVM's virtual machine launches its kernels one by one, some microseconds each. What it
launched once can be launched as a whole: the graph has the kernels with the addresses of all they
read and write. The memory that they work in goes back to TVM's pool, which never gives it to the
device while there is room, and everything that runs later in the same stream may use it in between.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from typing import Any

from ...targets.ffi import tvm_ffi
from .branches import Needs, branched
from .runtime import Runtime
from .timing import Timed, Timer

_NON_BLOCKING = 1
"""A stream that does not wait for the default one, which must not be used while one is recorded."""
_RELAXED = 2
"""cudaStreamCaptureModeRelaxed: memory may be allocated meanwhile."""


class Graph:
    """Kernels that a function launched, ready to be launched as a whole in the default stream.

    Parameters
    ----------
    runtime : Runtime
        CUDA's.
    recording : ctypes.c_void_p
        The recorded graph.
    needs : mapping, optional
        Which launches of a kernel need each other, see `branches.py`; else they are a chain.
    """

    def __init__(
        self, runtime: Runtime, recording: ctypes.c_void_p, needs: Needs | None = None
    ) -> None:
        self._runtime, self._recording = runtime, recording
        self._handle = ctypes.c_void_p()
        self._timer: Timer | None = None
        whole = branched(recording, needs) if needs else None
        options = ctypes.c_ulonglong(0)
        runtime("cudaGraphInstantiate", ctypes.byref(self._handle), whole or recording, options)
        if whole is not None:
            runtime.free("cudaGraphDestroy", whole)

    def launch(self) -> None:
        """Launch them; nothing is waited for."""
        self._runtime("cudaGraphLaunch", self._handle, None)

    def times(self) -> list[Timed]:
        """Launch them and return how long each took."""
        if self._timer is None:
            self._timer = Timer(self._runtime, self._recording)
        return self._timer.times()

    def __del__(self) -> None:
        self._runtime.free("cudaGraphExecDestroy", self._handle)
        self._runtime.free("cudaGraphDestroy", self._recording)


def record(
    runtime: Runtime,
    index: int,
    function: Callable[[], Any],
    taken: Callable[[Any], None],
    needs: Needs | None = None,
) -> Callable[[bool], str]:
    """Call a function and return what calls it again: the same kernels, on the same tensors.

    Parameters
    ----------
    runtime : Runtime
        CUDA's.
    index : int
        The device.
    function : callable
        Launches kernels that have all been launched before, and gives tensors.
    taken : callable
        Is handed what the function gave, which must be kept for as long as it is called again.
    needs : mapping, optional
        As of `Graph`.

    Returns
    -------
    callable
        ``replay(profile)``, which with `profile` returns a JSON list of each launch's kernel, its
        nanoseconds, and the bytes of the memory that it was given; empty otherwise, and where the
        function could not be recorded.
    """
    runtime("cudaSetDevice", index)
    recording = _captured(runtime, index, function, taken)
    graph = None if recording is None else Graph(runtime, recording, needs)

    def replay(profile: bool) -> str:
        runtime("cudaSetDevice", index)
        if graph is None:
            taken(function())
        elif profile:
            return json.dumps([(t.name, t.nanoseconds, t.bytes) for t in graph.times()])
        else:
            graph.launch()
        return "[]"

    replay(False)
    return replay


def _captured(
    runtime: Runtime, index: int, function: Callable[[], Any], taken: Callable[[Any], None]
) -> ctypes.c_void_p | None:
    """Return the kernels of a function as a graph, None where they can't be recorded."""
    stream = ctypes.c_void_p()
    runtime("cudaStreamCreateWithFlags", ctypes.byref(stream), _NON_BLOCKING)
    try:
        runtime("cudaStreamBeginCapture", stream, _RELAXED)
        graph = ctypes.c_void_p()
        result, failed = None, False
        try:
            with tvm_ffi.use_raw_stream(tvm_ffi.Device("cuda", index), stream.value or 0):
                result = function()
        except RuntimeError:
            # It does what a recording can't have; if it fails for another reason, it will again.
            failed = True
        if runtime.status("cudaStreamEndCapture", stream, ctypes.byref(graph)) or failed:
            return None
        taken(result)
        return graph
    finally:
        runtime.free("cudaStreamDestroy", stream)
