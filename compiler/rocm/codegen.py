"""``target.build.rocm``: code objects for each architecture of a target, in one device module."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tvm
import tvm_ffi

from ..carrier import device_module
from ..wire import blob
from .container import pack_code
from .errors import failure
from .generate import BUILD, MODULE_KIND
from .link import check_linker

WORKER = f"{__package__}.worker"


@dataclass(frozen=True)
class Made:
    """What was made for one architecture.

    Attributes
    ----------
    head : bytes
        A device module's bytes before its code: its kernels.
    code : bytes
        The code object.
    assembly : str
        The code as text.
    """

    head: bytes
    code: bytes
    assembly: str


def build(module: tvm.IRModule, target: tvm.target.Target) -> tvm.runtime.Module:
    """Return the device module of lowered kernels, with code for each architecture of the target.

    Parameters
    ----------
    module : IRModule
        Kernels as TVM splits them from the host's code.
    target : tvm.target.Target
        Of the kind ``rocm``; the architectures are among its keys.

    Raises
    ------
    RocmCompilerError
        If there is no linker, or LLVM refuses a kernel.
    """
    architectures = [str(key) for key in target.keys if str(key).startswith("gfx")]
    made = compile_kernels(module, architectures)
    heads = {each.head for each in made.values()}
    assert len(heads) == 1, "the architectures' kernels have different arguments"
    code = pack_code({name: each.code for name, each in made.items()})
    return device_module(MODULE_KIND, heads.pop() + blob(code))


def compile_kernels(module: tvm.IRModule, architectures: list[str]) -> dict[str, Made]:
    """Compile kernels for some architectures, as many at once as there are processors."""
    check_linker()
    content = tvm.ir.save_json(module)

    def make(architecture: str) -> Made:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            (folder / "module.json").write_text(content, encoding="utf-8")
            _run(architecture, folder)
            text = (folder / "assembly").read_text(encoding="utf-8")
            return Made((folder / "head").read_bytes(), (folder / "code").read_bytes(), text)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(architectures, pool.map(make, architectures), strict=True))


def _run(architecture: str, folder: Path) -> None:
    command = [sys.executable, "-m", WORKER, architecture, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if run.returncode == 0:
        return
    lines = [line for line in run.stderr.splitlines() if line.strip()]
    refused = next((line for line in lines if re.match(r"LLVM ERROR|error:", line)), "")
    said = refused or (lines[-1] if lines else f"status {run.returncode}")
    raise failure(
        f"Compiling the kernels for {architecture} failed: {said.strip().rstrip('.')}.",
        "This is a fault of fabric's: report it, and use --target vulkan:auto until it is mended.",
    )


tvm_ffi.register_global_func(BUILD, build, override=True)
