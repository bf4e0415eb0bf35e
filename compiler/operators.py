"""What a node of a tensor program calls."""

from __future__ import annotations

from typing import Any

import tvm


def operator(node: Any) -> str:
    """Return the name of the operator that a call calls; "" where it calls none."""
    return str(getattr(node.op, "name", "")) if isinstance(node, tvm.ir.Call) else ""
