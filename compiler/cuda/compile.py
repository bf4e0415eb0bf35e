"""CUDA C++ becomes machine code: NVRTC writes PTX, ``ptxas`` the code of each architecture.

PTX is written once, for the oldest architecture, since that takes most of the time; it goes along
in the container, for processors that are newer than all that the container has code for.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .errors import CudaCompilerError, failure
from .toolkit import BUILTINS, NVRTC, Toolkit, find_toolkit

SOURCE = "kernels.cu"
_KERNEL = re.compile(r"__global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(")


def compile_source(source: str, architectures: Sequence[str]) -> bytes:
    """Compile kernels.

    Parameters
    ----------
    source : str
        CUDA C++.
    architectures : sequence of str
        Such as ``sm_80``, the oldest first.

    Returns
    -------
    bytes
        A fat binary: a cubin for each, and PTX for what is newer.

    Raises
    ------
    CudaCompilerError
        If the compilers are not installed, or refuse a kernel: the sentence names it.
    """
    toolkit = find_toolkit()
    virtual = architectures[0].replace("sm_", "compute_")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        ptx = folder / "kernels.ptx"
        ptx.write_bytes(_ptx(toolkit, source, virtual))

        def assemble(architecture: str) -> Path:
            cubin = folder / f"{architecture}.cubin"
            _run([toolkit.program("ptxas"), f"-arch={architecture}", ptx, "-o", cubin], "ptxas")
            return cubin

        with ThreadPoolExecutor() as pool:
            cubins = list(pool.map(assemble, architectures))
        whole = folder / "kernels.fatbin"
        images = [
            f"--image3=kind=elf,sm={name.removeprefix('sm_')},file={cubin}"
            for name, cubin in zip(architectures, cubins, strict=True)
        ]
        images.append(f"--image3=kind=ptx,sm={virtual.removeprefix('compute_')},file={ptx}")
        _run([toolkit.program("fatbinary"), "-64", f"--create={whole}", *images], "fatbinary")
        return whole.read_bytes()


def _ptx(toolkit: Toolkit, source: str, virtual: str) -> bytes:
    """Return the PTX of kernels for a virtual architecture, such as ``compute_75``."""
    nvrtc = _nvrtc(toolkit)
    program, text = ctypes.c_void_p(), source.encode()
    name = SOURCE.encode()
    _check(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name, 0, None, None))
    try:
        options = [f"--gpu-architecture={virtual}", "--std=c++17", "-default-device", "-w"]
        options += [f"-I{folder}" for folder in toolkit.includes]
        encoded = [option.encode() for option in options]
        status = nvrtc.nvrtcCompileProgram(
            program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded)
        )
        if status:
            log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
            raise _refused(source, log.decode(errors="replace"))
        return _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _nvrtc(toolkit: Toolkit) -> ctypes.CDLL:
    """Return NVRTC, which looks for its second library among those that are loaded."""
    try:
        ctypes.CDLL(str(toolkit.library(BUILTINS)), ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(toolkit.library(NVRTC)))
    except OSError as error:
        raise failure(
            f"The compiler for CUDA can't be loaded: {error}.",
            "Install it anew: pip install --force-reinstall nvidia-cuda-nvrtc==13.0.*",
        ) from error


def _text(size_of: Any, get: Any, program: ctypes.c_void_p) -> bytes:
    """Return one of a program's texts, which end with a zero."""
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    content = ctypes.create_string_buffer(size.value)
    get(program, content)
    return content.value


def _check(nvrtc: ctypes.CDLL, status: int) -> None:
    if status:
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        said = nvrtc.nvrtcGetErrorString(status).decode()
        raise failure(f"The compiler for CUDA failed: {said}.", "See `fabric doctor`.")


def _refused(source: str, log: str) -> CudaCompilerError:
    """Return the error for what NVRTC said: the kernel, and the first message."""
    found = re.search(rf"{re.escape(SOURCE)}\((\d+)\): (?:catastrophic )?error: (.+)", log)
    said = found[2] if found else (log.strip().splitlines() or ["no message"])[0]
    kernel = _kernel_at(source, int(found[1])) if found else ""
    where = f" the kernel {kernel}" if kernel else " a kernel"
    return failure(
        f"CUDA's compiler refuses{where}: {said.rstrip('.')}.",
        "This is a fault of fabric's: report it, and use --target vulkan:auto until it is mended.",
    )


def _kernel_at(source: str, line: int) -> str:
    """Return the kernel that a line of the source belongs to; "" for what precedes them all."""
    name = ""
    for text in source.splitlines()[:line]:
        found = _KERNEL.search(text)
        if found and text.rstrip().endswith("{"):
            name = found[1]
    return name


def _run(command: Sequence[str | Path], name: str) -> None:
    """Run a program of the toolkit."""
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if run.returncode:
        lines = (run.stderr + run.stdout).strip().splitlines()
        said = next((line for line in lines if "error" in line or "fatal" in line), "")
        raise failure(
            f"CUDA's {name} failed: {said or f'status {run.returncode}'}.",
            "Install it anew: pip install --force-reinstall nvidia-cuda-nvcc==13.0.*",
        )
