"""Copies to shared memory that are asked for, closed as a group, and later waited for.

A thread sees what it copied after its wait, and what others copied after a barrier, too (PTX ISA,
"cp.async"). The functions named here are in `compiler/cuda/copies.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr


def copy_vector(memory: Buffer, place: Expr | Sequence[Expr], source: Buffer, *index: Expr) -> None:
    """Ask for the copy of a vector of 16 bytes."""
    to = memory[tuple(place)] if isinstance(place, list) else memory[place]
    _call("vector", T.address_of(to), T.address_of(source[index]))


def close_copies() -> None:
    """Make a group of the copies asked for since the last one."""
    _call("close")


def wait_copies(groups: int) -> None:
    """Wait until at most so many groups of this thread's copies are under way."""
    _call(f"wait_{groups}")


def _call(name: str, *arguments: Expr) -> None:
    T.evaluate(T.call_extern("int32", f"fabric_copy_{name}", *arguments))
