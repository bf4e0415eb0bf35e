"""This process as a Mac, as far as Metal goes: `metal_stand_in.cc` in the place of the libraries.

What is registered with TVM's runtime stays, so the tests run this in processes of their own::

    python -m tests.runtime.metal_emulator FOLDER program.py arguments

builds the stand-in into a folder, and runs the program.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import tvm_ffi
from bitfabric.runtime import metal
from bitfabric.runtime.metal import libraries, objective_c
from bitfabric.runtime.native import build

from ..compiler.metal.emulation import compile_kernel

SOURCE = Path(__file__).with_name("metal_stand_in.cc")


def stand_in(folder: Path) -> Path:
    """Build the library, unless the folder has it, and return its path."""
    library = folder / "libmetal_stand_in.so"
    if not library.exists():
        command = [build.compiler(), "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{build.FOLDER}"]
        command += [f"-I{path}" for path in build.include_folders()]
        command += [str(SOURCE), "-o", str(library)]
        command += [f"-L{path}" for path in build.library_folders()]
        command += [f"-l{name}" for name in build.LIBRARIES]
        subprocess.run(command, check=True)
    return library


def become_a_mac(folder: Path) -> None:
    """Let the runtime find the stand-in; kernels are compiled into the folder."""
    path = stand_in(folder)

    def library() -> Path:
        return path

    metal.library = libraries.library = library
    objective_c.OBJECTIVE_C = objective_c.METAL = str(path)

    def compile_source(source: str) -> str:
        return str(compile_kernel(source, folder))

    tvm_ffi.register_global_func("bitfabric.test.compile_kernel", compile_source)


if __name__ == "__main__":
    folder, program, *arguments = sys.argv[1:]
    become_a_mac(Path(folder))
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")
