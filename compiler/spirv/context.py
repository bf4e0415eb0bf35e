"""What the parts of the generator share while one kernel is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import tvm_ffi

from .abilities import Abilities
from .arithmetic import Arithmetic
from .builder import Builder
from .conversions import Conversions
from .errors import Refuse
from .interface import Interface
from .launch import Launch
from .memory import View
from .types import Types
from .values import DType, Value, parse

Node = Any
"""An expression or statement of TIR."""


def identity(node: Node) -> int:
    """Return the address of TVM's object, by which nodes are told apart.

    To compare two with ``==`` would make an expression, and a number's own hash is its value.
    """
    return tvm_ffi.Object.__hash__(node)


@dataclass
class Context:
    """One kernel's module and what is known in it.

    Variables and buffers are found by their :func:`identity`.

    Attributes
    ----------
    coherent : bool
        Whether the module follows Vulkan's memory model, in which an access says that other
        threads are to see it.
    values : dict
        The value of each variable in sight.
    parameters : dict
        The number of each scalar argument, which is read where it is first used.
    views : dict
        The view of each buffer, and of each pointer to one, in sight.
    subgroup_size : int
        Threads that a subgroup must have; 0 where any number will do.
    shared_bytes : int
        Memory of a work-group so far.
    """

    abilities: Abilities
    builder: Builder
    types: Types
    arithmetic: Arithmetic
    conversions: Conversions
    interface: Interface
    launch: Launch
    refuse: Refuse
    coherent: bool
    values: dict[int, Value] = field(default_factory=dict)
    views: dict[int, View] = field(default_factory=dict)
    parameters: dict[int, int] = field(default_factory=dict)
    subgroup_size: int = 0
    shared_bytes: int = 0
    _dtypes: dict[int, tuple[Any, DType]] = field(default_factory=dict)

    def dtype(self, node: Node) -> DType:
        """Return the type of an expression.

        Raises
        ------
        FabricError
            For one that no register holds.
        """
        kind = node.ty
        found = self._dtypes.get(identity(kind))
        if found is None:
            name = str(getattr(kind, "dtype", kind))
            dtype = parse(name)
            if dtype is None:
                raise self.refuse(f"the type {name or 'void'}")
            # TVM's type is kept, so that no other comes to lie at its address.
            found = self._dtypes[identity(kind)] = kind, dtype
        return found[1]

    def argument(self, index: int) -> Value:
        """Return a scalar argument."""
        dtype = self.interface.arguments[index].dtype
        assert dtype is not None
        words = self.interface.words(self.interface.arguments[index].place)
        return self.conversions.from_argument(words, dtype)
