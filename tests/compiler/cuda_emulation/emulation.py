"""Run a kernel laid out for CUDA on the processor, from the CUDA C++ that TVM writes of it.

The text is compiled as C++ with `device.h`, which says what CUDA's words mean. It is far too slow
for anything but small shapes; what it finds are errors of layout, of barriers, and of memory that
nobody wrote.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tvm
from bitfabric.compiler.cuda import codegen
from bitfabric.compiler.device_code import NAME as DEVICE_CODE
from bitfabric.compiler.pipeline import tvm_target
from bitfabric.targets import Target
from tvm import tirx

from .host import Host, host_function

HERE = Path(__file__).parent
OPTIONS = (
    "-O1",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-w",
    "-fno-strict-aliasing",
    "-fno-sanitize=all",
)
OWN = (
    "fabric_exp2|fabric_fragment_multiply|fabric_fragment_rows|fabric_fragment_columns|"
    "fabric_(?:half|bounded)_pair|fabric_(?:half|bounded)_pair_rest|fabric_rest_pair|"
    "fabric_bounded_rest|fabric_warpgroup_\\w+|fabric_copy_\\w+"
)
"""The functions of ours whose text is PTX, which `device.h` has in C++."""
SHARED = 256 << 10
"""Bytes of shared memory whose size a launch gives."""
KERNEL = re.compile(r'extern "C" __global__ void __launch_bounds__\(\d+\) (\w+)\(([^)]*)\) \{')


def missing_compiler() -> str:
    """Return why nothing can be emulated here, "" if it can."""
    if sys.platform != "linux":
        return "threads that take turns are Linux's here"
    return "" if importlib.util.find_spec("ziglang") else "needs ziglang, for 16-bit floats in C++"


class Emulation:
    """A kernel; call it with its arguments.

    Parameters
    ----------
    function : PrimFunc
        Scheduled for `target`.
    target : Target
        One of CUDA's.
    """

    def __init__(self, function: tirx.PrimFunc, target: Target) -> None:
        text = _source(function, target)
        self.library = ctypes.CDLL(str(_compiled(text)))
        self.host = Host(host_function(function, tvm_target(target)), self._launch)

    def __call__(self, *arrays: np.ndarray) -> None:
        self.host(arrays)

    def _launch(self, name: str, arguments: list[np.ndarray | int], extents: list[int]) -> None:
        arrays = [np.asarray(a, "int64") if isinstance(a, int) else a for a in arguments]
        pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
        getattr(self.library, f"launch_{name}")(pointers, *extents)


def _source(function: tirx.PrimFunc, target: Target) -> str:
    """Return the kernels as C++."""
    found = []

    def keep(source: str, _architectures: Sequence[str]) -> bytes:
        found.append(source)
        return b""

    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codegen, "compile_source", keep)
        tvm.compile(module, target=tvm_target(target), tir_pipeline=DEVICE_CODE)
    return _as_cpp(found[0])


def _as_cpp(source: str) -> str:
    """Return CUDA C++ without TVM's preamble, with a function to launch each kernel."""
    text = source.split("#define ushort unsigned short", 1)[1].split("#endif", 1)[1]
    function = rf"(template <typename V>\n)?static [\w ]+ (?:{OWN})\([^)]*\) \{{.*?\n\}}\n"
    text = re.sub(function, "", text, flags=re.DOTALL)
    text = text.replace("__shared__ alignas(64)", "alignas(64) static")
    given = r"extern __shared__ __align__\(64\) (\w+) (\w+)\[\];"
    text = re.sub(given, rf"alignas(64) static \1 \2[{SHARED} / sizeof(\1)];", text)
    lines = ['#include "device.h"', text]
    for name, parameters in KERNEL.findall(text):
        types = [p.strip().rsplit(" ", 1)[0] for p in parameters.split(",")]
        arguments = ", ".join(
            f"({t})arguments_{name}[{i}]" if "*" in t else f"*({t}*)arguments_{name}[{i}]"
            for i, t in enumerate(types)
        )
        lines += [
            f"static void** arguments_{name};",
            f"static void call_{name}() {{ {name}({arguments}); }}",
            f'extern "C" void launch_{name}(void** a, int x, int y, int z, int threads) {{',
            f"  arguments_{name} = a;",
            f"  run_grid(call_{name}, x, y, z, threads);",
            "}",
        ]
    return "\n".join(lines)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="cuda-emulation-")


def _compiled(text: str) -> Path:
    """Return the library of a program, which is compiled once."""
    folder = Path(_folder().name)
    library = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        program = library.with_suffix(".cc")
        program.write_text(text)
        command = [sys.executable, "-m", "ziglang", "c++", *OPTIONS, f"-I{HERE}"]
        subprocess.run([*command, str(program), "-o", str(library)], check=True)
    return library
