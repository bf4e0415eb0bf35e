"""The time of each kernel of a recorded graph, by events of the device between them.

The graph's kernels go into a second graph, each between two events: the device runs it by itself,
so that no kernel waits for the host, as it would if they were launched one by one.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from .devices import Driver
from .runtime import Runtime

_KERNEL_NODE = 0
"""CU_GRAPH_NODE_TYPE_KERNEL."""
_POINTER_BYTES = 8


class _KernelNode(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2 (cuda.h)."""

    _fields_ = [
        ("function", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("parameters", ctypes.POINTER(ctypes.c_void_p)),
        ("extra", ctypes.c_void_p),
        ("kernel", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    ]


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
        nodes = [self._parameters(node) for node in self._kernels(graph)]
        self._kinds = [(self._name(node), self._bytes(node)) for node in nodes]
        self._events = [self._event() for _ in range(len(nodes) + 1)]
        whole, before = ctypes.c_void_p(), ctypes.c_void_p()
        self._driver("cuGraphCreate", ctypes.byref(whole), 0)
        self._record(whole, before, self._events[0])
        for node, event in zip(nodes, self._events[1:], strict=True):
            self._add("cuGraphAddKernelNode_v2", whole, before, ctypes.byref(node))
            self._record(whole, before, event)
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

    def _add(
        self, function: str, graph: ctypes.c_void_p, before: ctypes.c_void_p, what: object
    ) -> None:
        """Add a node behind the one that `before` names, and let it name the new one."""
        node, count = ctypes.c_void_p(), ctypes.c_size_t(1 if before.value else 0)
        behind = ctypes.byref(before) if before.value else None
        self._driver(function, ctypes.byref(node), graph, behind, count, what)
        before.value = node.value

    def _record(
        self, graph: ctypes.c_void_p, before: ctypes.c_void_p, event: ctypes.c_void_p
    ) -> None:
        self._add("cuGraphAddEventRecordNode", graph, before, event)

    def _kernels(self, graph: ctypes.c_void_p) -> list[ctypes.c_void_p]:
        """Return the graph's kernels, in the order in which they were recorded."""
        count = ctypes.c_size_t()
        self._driver("cuGraphGetNodes", graph, None, ctypes.byref(count))
        nodes = (ctypes.c_void_p * count.value)()
        self._driver("cuGraphGetNodes", graph, nodes, ctypes.byref(count))
        handles = [ctypes.c_void_p(node) for node in nodes]
        return [
            node
            for node in handles
            if self._driver.number("cuGraphNodeGetType", node) == _KERNEL_NODE
        ]

    def _parameters(self, node: ctypes.c_void_p) -> _KernelNode:
        found = _KernelNode()
        self._driver("cuGraphKernelNodeGetParams_v2", node, ctypes.byref(found))
        return found

    def _name(self, node: _KernelNode) -> str:
        name = ctypes.c_char_p()
        if node.function:
            handle = ctypes.c_void_p(node.function)
            self._driver("cuFuncGetName", ctypes.byref(name), handle)
        else:
            self._driver("cuKernelGetName", ctypes.byref(name), ctypes.c_void_p(node.kernel))
        return (name.value or b"").decode()

    def _bytes(self, node: _KernelNode) -> int:
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
