"""Tensors over a part of another's memory, which kernels take from their first byte on.

TVM's own views keep the whole's address and an offset beside it, which generated code refuses. So
a part is handed to TVM as DLPack hands over anybody's memory: an address, a shape, and a function
to call when nobody needs it any more.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

from ...targets.ffi import tvm_ffi

_NAME = b"dltensor"


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("index", ctypes.c_int))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("axes", ctypes.c_int),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    """``DLManagedTensor`` of dlpack.h."""


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))
_held: dict[int, Any] = {}
"""What views are over, and their own memory, by the address of the view."""


@_Deleter
def _release(view: Any) -> None:
    _held.pop(ctypes.addressof(view.contents), None)


_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = (
    ctypes.py_object,
    (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
)


class _Exported:
    """What ``from_dlpack`` takes: a view, as a capsule."""

    def __init__(self, view: _Managed) -> None:
        self._view = view

    def __dlpack__(self, **_: Any) -> Any:
        return _capsule(ctypes.addressof(self._view), _NAME, None)

    def __dlpack_device__(self) -> tuple[int, int]:
        device = self._view.tensor.device
        return device.type, device.index


def view(tensor: Any, offset: int, shape: Sequence[int], dtype: Any) -> Any:
    """Return a tensor over a part of another's memory, which it keeps alive.

    Parameters
    ----------
    tensor : Tensor
        A contiguous one.
    offset : int
        Bytes from its beginning.
    shape, dtype
        Of the part.

    Raises
    ------
    ValueError
        If the part does not lie within the tensor.
    """
    has, needs = tensor.numel() * tensor.dtype.itemsize, math.prod(shape) * dtype.itemsize
    if not 0 <= offset <= has - needs:
        raise ValueError(f"{needs} bytes at byte {offset} are not within a tensor of {has} bytes.")
    extents = (ctypes.c_int64 * len(shape))(*shape)
    strides = (ctypes.c_int64 * len(shape))(
        *(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    )
    device = _Device(tensor.device.dlpack_device_type(), tensor.device.index)
    kind = _Type(dtype.type_code, dtype.bits, dtype.lanes)
    inner = _Tensor(tensor.data_ptr() + offset, device, len(shape), kind, extents, strides, 0)
    made = _Managed(inner, None, _release)
    _held[ctypes.addressof(made)] = (made, tensor, extents, strides)
    return tvm_ffi.from_dlpack(_Exported(made))
