"""The bytes of a CUDA device module, as TVM's ``libtvm_runtime_cuda`` reads them.

Little endian; a text is a 64-bit length and its bytes, a list a 64-bit count and its items::

    text format | list of records | text code
    record: text key | text name | list of types (u8 code, u8 bits, u16 lanes)
          | list of texts: launch tags | list of i32: extra tags
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from ..wire import blob, items, text


def pack_module(form: str, functions: Mapping[str, Any], code: bytes) -> bytes:
    """Return a device module.

    Parameters
    ----------
    form : str
        Of the code: ``"fatbin"``, ``"cubin"`` or ``"ptx"``.
    functions : mapping
        TVM's ``runtime.FunctionInfo`` of each kernel, by its name.
    code : bytes
        The code.
    """
    records = [text(str(key)) + _record(info) for key, info in functions.items()]
    return text(form) + items(records) + blob(code)


def _record(info: Any) -> bytes:
    parts = [
        text(str(info.name)),
        items(_type(dtype) for dtype in info.arg_types),
        items(text(str(tag)) for tag in info.launch_param_tags),
        items(struct.pack("<i", int(tag)) for tag in info.arg_extra_tags),
    ]
    return b"".join(parts)


def _type(dtype: Any) -> bytes:
    return struct.pack("<BBH", int(dtype.type_code), int(dtype.bits), int(dtype.lanes))
