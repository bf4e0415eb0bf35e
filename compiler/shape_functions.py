"""The small functions that compute shapes at run time, always written the same way.

TVM writes their statements in the order of a hash table of addresses, so that two compilations of
one model would differ by a few bytes.
"""

from __future__ import annotations

import tvm
from tvm import tirx

PREFIX = "shape_func"


def in_order(module: tvm.IRModule) -> tvm.IRModule:
    """Return a lowered module whose shape functions fill their slots in order.

    Each statement computes one slot from those of the model's own variables, which none of them
    writes, so any order computes the same.
    """
    ordered = tvm.IRModule(dict(module.functions.items()), attrs=module.attrs)
    for name, function in module.functions.items():
        body = getattr(function, "body", None)
        if name.name_hint.startswith(PREFIX) and isinstance(body, tirx.SeqStmt):
            stores = sorted(body.seq, key=lambda store: int(store.indices[0]))
            ordered.update_func(name, function.with_body(tirx.SeqStmt(stores)))
    return ordered
