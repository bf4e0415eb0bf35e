"""From lowered kernels to one architecture's code object, in this process.

TVM's generator writes to the standard error what is no error, and LLVM ends the process where it
has no instruction for something: :mod:`worker` is a process of its own for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tvm
import tvm.support.rocm
import tvm_ffi

from ...targets.rocm import ARCHITECTURES, THREADS
from ..cuda.container import pack_module
from ..wire import blob
from .barriers import lower_barriers
from .externs import lower_externs
from .fragments import lower_fragments
from .functions import functions
from .link import link_object
from .matrices import matrix_functions
from .views import lower_views

KIND, FORMAT = "rocm", "hsaco"
MODULE_KIND = "hip"
"""What TVM calls a device module of ROCm."""
BUILD = f"target.build.{KIND}"
_generate = tvm_ffi.get_global_func(BUILD)


def lowered(module: tvm.IRModule, architecture: str) -> tvm.IRModule:
    """Return kernels in the form that TVM's generator for LLVM takes."""
    module = lower_fragments(lower_views(module), architecture)
    return lower_barriers(lower_externs(module, ARCHITECTURES[architecture].wave))


def generate(module: tvm.IRModule, architecture: str, folder: Path) -> tuple[bytes, bytes, str]:
    """Return a code object, what describes its kernels, and the code as text.

    Parameters
    ----------
    module : IRModule
        Kernels as TVM splits them from the host's code.
    architecture : str
        Such as ``gfx90a``.
    folder : pathlib.Path
        For files that are of no use afterwards.

    Returns
    -------
    tuple
        A device module's bytes before its code, the code object, and its assembly.
    """
    library = folder / "functions.ll"
    wave = ARCHITECTURES[architecture].wave
    library.write_text(functions(wave) + matrix_functions(architecture), encoding="utf-8")
    made: dict[str, Any] = {}

    def link(content: Any) -> bytearray:
        return bytearray(link_object(bytes(content), folder))

    def create(code: bytes, _form: str, kernels: Any, sources: Any) -> tvm.runtime.Module:
        made["head"] = pack_module(FORMAT, kernels, b"")[: -len(blob(b""))]
        made["code"], made["text"] = bytes(code), str(dict(sources).get("asm", ""))
        carried = tvm_ffi.get_global_func("ffi.Module.create.const_loader")
        return carried({}, {})

    for name, function in (
        ("tvm_callback_rocm_bitcode_path", lambda *_: [str(library)]),
        ("tvm_callback_rocm_link", link),
        (f"ffi.Module.create.{KIND}", create),
    ):
        tvm_ffi.register_global_func(name, function, override=True)
    target = tvm.target.Target({"kind": KIND, "mcpu": architecture, "max_num_threads": THREADS})
    _generate(lowered(module, architecture), target)
    return made["head"], made["code"], made["text"]
