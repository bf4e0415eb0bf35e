"""The kernels of a CUDA graph, and graphs made of kernels (CUDA driver API, "Graph Management")."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from .devices import Driver

_KERNEL_NODE = 0
"""CU_GRAPH_NODE_TYPE_KERNEL."""


class KernelNode(ctypes.Structure):
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


def graph_nodes(driver: Driver, graph: ctypes.c_void_p) -> tuple[list[KernelNode], bool]:
    """Return a graph's kernels in the order in which they were recorded, and whether that is all.

    They are valid as long as the graph.
    """
    count = ctypes.c_size_t()
    driver("cuGraphGetNodes", graph, None, ctypes.byref(count))
    nodes = (ctypes.c_void_p * count.value)()
    driver("cuGraphGetNodes", graph, nodes, ctypes.byref(count))
    found = []
    for handle in nodes:
        node, kind, kernel = ctypes.c_void_p(handle), ctypes.c_int(), KernelNode()
        driver("cuGraphNodeGetType", node, ctypes.byref(kind))
        if kind.value == _KERNEL_NODE:
            driver("cuGraphKernelNodeGetParams_v2", node, ctypes.byref(kernel))
            found.append(kernel)
    return found, len(found) == count.value


def kernel_name(driver: Driver, node: KernelNode) -> str:
    """Return a kernel's name."""
    name = ctypes.c_char_p()
    if node.function:
        driver("cuFuncGetName", ctypes.byref(name), ctypes.c_void_p(node.function))
    else:
        driver("cuKernelGetName", ctypes.byref(name), ctypes.c_void_p(node.kernel))
    return (name.value or b"").decode()


def new_graph(driver: Driver) -> ctypes.c_void_p:
    """Return an empty graph."""
    graph = ctypes.c_void_p()
    driver("cuGraphCreate", ctypes.byref(graph), 0)
    return graph


def add_node(
    driver: Driver,
    function: str,
    graph: ctypes.c_void_p,
    before: Sequence[ctypes.c_void_p],
    what: object,
) -> ctypes.c_void_p:
    """Add a node by one of the driver's functions, behind others; return it."""
    node, count = ctypes.c_void_p(), ctypes.c_size_t(len(before))
    behind = (ctypes.c_void_p * len(before))(*(other.value for other in before))
    driver(function, ctypes.byref(node), graph, behind if before else None, count, what)
    return node


def add_kernel(
    driver: Driver, graph: ctypes.c_void_p, before: Sequence[ctypes.c_void_p], kernel: KernelNode
) -> ctypes.c_void_p:
    """Add a kernel behind other nodes; return its node."""
    return add_node(driver, "cuGraphAddKernelNode_v2", graph, before, ctypes.byref(kernel))
