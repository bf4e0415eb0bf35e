"""One kernel laid out for Metal, run here: its host's side interpreted, its MSL compiled as C++."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import tvm
from bitfabric.compiler.device_code import NAME as DEVICE_CODE
from bitfabric.compiler.pipeline import tvm_target
from bitfabric.targets import Target
from tvm import tirx

from ..cuda_emulation.host import Host, host_function
from .emulation import compile_kernel
from .sources import captured


class Launched:
    """A kernel of fixed shapes; call it with its arguments.

    Parameters
    ----------
    name : str
        Another for each kernel of a folder.
    function : PrimFunc
        Scheduled for `target`.
    target : Target
        One of Metal's.
    folder : Path
        Where its launches are compiled.

    Attributes
    ----------
    sources : dict of str to str
        The MSL of its launches, by their names.
    """

    def __init__(self, name: str, function: tirx.PrimFunc, target: Target, folder: Path) -> None:
        module = tvm.IRModule({name: function.with_attr("global_symbol", name)})
        goal = tvm_target(target.with_host("x86_64-linux-gnu"))
        self.sources = captured(lambda: tvm.compile(module, target=goal, tir_pipeline=DEVICE_CODE))
        self.libraries = {
            launch: ctypes.CDLL(str(compile_kernel(source, folder)))
            for launch, source in self.sources.items()
        }
        self.host = Host(host_function(function, goal, name), self._launch)

    def __call__(self, *arrays: np.ndarray) -> None:
        self.host(arrays)

    def _launch(self, name: str, arrays: list[np.ndarray | int], extents: list[int]) -> None:
        buffers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
        grid, block = (ctypes.c_uint * 3)(*extents[:3]), (ctypes.c_uint * 3)(extents[3], 1, 1)
        getattr(self.libraries[name], f"run_{name}")(buffers, None, grid, block)
