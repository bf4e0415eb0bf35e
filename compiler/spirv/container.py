"""The bytes of a Vulkan device module: what TVM's host code asks of it, and its kernels.

Little endian; a text is a 64-bit length and its bytes, a list a 64-bit count and its items. Outside
it is laid out as TVM lays out device modules of every kind::

    text "spirv" | list of records | text code
    record: text key | text name | list of types (u8 code, u8 bits, u16 lanes)
          | list of texts: launch tags | list of i32: extra tags

and the code is::

    text "bitfabric.spirv.1" | list of kernels
    kernel: text name | u32 Vulkan's version | u8 interface | u8 spilled | u8 foldable | u8 0
          | u32 block bytes | u32 grid offset | u32 subgroup size | u32 shared bytes
          | u32 × 3 work-group size | list of arguments | list of texts: features | text SPIR-V
    argument: u8 kind | u8 access | u16 0 | u32 place

The interface is 0 for buffers by their addresses and 1 for descriptors; the kind of an argument is
0 for a scalar and 1 for a buffer; access has the bits 1 for reading and 2 for writing. The rest is
as :class:`.kernel.KernelCode` has it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ..wire import blob, items, text
from .interface import Argument
from .kernel import KernelCode
from .values import DType

FORMAT = "spirv"
"""The format that a device module names."""
HEADER = "bitfabric.spirv.1"
ADDRESSES, DESCRIPTORS = 0, 1
SCALAR, BUFFER = 0, 1
_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4}
"""DLPack's numbers of types."""
_HANDLE = struct.pack("<BBH", 3, 64, 1)


def pack_module(kernels: Sequence[KernelCode]) -> bytes:
    """Return a device module."""
    code = text(HEADER) + items(_kernel(kernel) for kernel in kernels)
    return text(FORMAT) + items(_record(kernel) for kernel in kernels) + blob(code)


def _record(kernel: KernelCode) -> bytes:
    parts = [
        text(kernel.name),
        text(kernel.name),
        items(_type(argument.dtype) for argument in kernel.arguments),
        items(text(tag) for tag in kernel.launch_tags),
        items(struct.pack("<i", 0) for _ in kernel.arguments),
    ]
    return b"".join(parts)


def _type(dtype: DType | None) -> bytes:
    if dtype is None:
        return _HANDLE
    if dtype.kind == "bool":
        # The backend passes integers; a bool is one of a byte.
        dtype = DType("uint", 8)
    return struct.pack("<BBH", _CODES[dtype.kind], dtype.bits, dtype.lanes)


def _kernel(kernel: KernelCode) -> bytes:
    major, minor = kernel.vulkan
    fixed = struct.pack(
        "<I4B7I",
        major << 22 | minor << 12,
        ADDRESSES if kernel.addresses else DESCRIPTORS,
        kernel.spilled,
        kernel.foldable,
        0,
        kernel.block_bytes,
        kernel.grid_offset,
        kernel.subgroup_size,
        kernel.shared_bytes,
        *kernel.threads,
    )
    parts = [
        text(kernel.name),
        fixed,
        items(_argument(argument) for argument in kernel.arguments),
        items(text(feature) for feature in kernel.features),
        blob(kernel.spirv),
    ]
    return b"".join(parts)


def _argument(argument: Argument) -> bytes:
    kind = BUFFER if argument.dtype is None else SCALAR
    return struct.pack("<2BHI", kind, argument.access, 0, argument.place)
