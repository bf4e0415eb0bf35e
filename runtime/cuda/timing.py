"""The time of each kernel of a recorded graph, by events of the device between them.

The graph's kernels go into a second graph, each between two events: the device runs it by itself,
so that no kernel waits for the host, as it would if they were launched one by one.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from .devices import Driver
from .nodes import KernelNode, add_kernel, add_node, graph_nodes, kernel_name, new_graph
from .runtime import Runtime

_POINTER_BYTES = 8


@dataclass(frozen=True)
class Timed:
    """One launch.

    Attributes
    ----------
    name : str
        Its kernel.
    nanoseconds : float
        Its time, to the half microsecond of the device's events.
    bytes : int
        What the memory that it was given holds, from each address to the end of its allocation.
    """

    name: str
    nanoseconds: float
    bytes: int


class Timer:
    """A graph's kernels between events, ready to be launched and timed.

    Parameters
    ----------
    runtime : Runtime
        CUDA's.
    graph : ctypes.c_void_p
        The recording, a chain of kernels, which must outlive this.
    """

    def __init__(self, runtime: Runtime, graph: ctypes.c_void_p) -> None:
        self._runtime, self._driver = runtime, Driver()
        nodes, _ = graph_nodes(self._driver, graph)
        self._kinds = [(kernel_name(self._driver, node), self._bytes(node)) for node in nodes]
        self._events = [self._event() for _ in range(len(nodes) + 1)]
        whole = new_graph(self._driver)
        before = self._record(whole, [], self._events[0])
        for node, event in zip(nodes, self._events[1:], strict=True):
            kernel = add_kernel(self._driver, whole, [before], node)
            before = self._record(whole, [kernel], event)
        self._handle = ctypes.c_void_p()
        runtime("cudaGraphInstantiate", ctypes.byref(self._handle), whole, ctypes.c_ulonglong(0))
        runtime.free("cudaGraphDestroy", whole)

    def times(self) -> list[Timed]:
        """Launch the kernels, wait for them, and return each with its time, in order."""
        self._runtime("cudaGraphLaunch", self._handle, None)
        self._runtime("cudaStreamSynchronize", None)
        found = []
        for i, (name, size) in enumerate(self._kinds):
            milliseconds = ctypes.c_float()
            begin, end = self._events[i : i + 2]
            self._runtime("cudaEventElapsedTime", ctypes.byref(milliseconds), begin, end)
            found.append(Timed(name, 1e6 * milliseconds.value, size))
        return found

    def __del__(self) -> None:
        self._runtime.free("cudaGraphExecDestroy", self._handle)
        for event in self._events:
            self._runtime.free("cudaEventDestroy", event)

    def _event(self) -> ctypes.c_void_p:
        event = ctypes.c_void_p()
        self._runtime("cudaEventCreate", ctypes.byref(event))
        return event

    def _record(
        self, graph: ctypes.c_void_p, before: list[ctypes.c_void_p], event: ctypes.c_void_p
    ) -> ctypes.c_void_p:
        return add_node(self._driver, "cuGraphAddEventRecordNode", graph, before, event)

    def _bytes(self, node: KernelNode) -> int:
        """Return the bytes of all allocations that a kernel's parameters point to."""
        found: dict[int, int] = {}
        offset, size = ctypes.c_size_t(), ctypes.c_size_t()
        function, index = ctypes.c_void_p(node.function), 0
        while (
            self._driver.status(
                "cuFuncGetParamInfo",
                function,
                ctypes.c_size_t(index),
                ctypes.byref(offset),
                ctypes.byref(size),
            )
            == 0
        ):
            if size.value == _POINTER_BYTES:
                address = ctypes.c_uint64.from_address(node.parameters[index]).value
                found[address] = self._held(address)
            index += 1
        return sum(found.values())

    def _held(self, address: int) -> int:
        """Return the bytes from an address to the end of its allocation, 0 where it is none."""
        base, size, place = ctypes.c_uint64(), ctypes.c_size_t(), ctypes.c_uint64(address)
        status = self._driver.status(
            "cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), place
        )
        return 0 if status else base.value + size.value - address
