"""NVIDIA's compilers as PyPI packages them: NVRTC, the assembler of PTX, and the headers.

No driver, no graphics processor and no C++ compiler is needed, nor a toolkit of the system: the
packages of the extra ``cuda`` put everything into one folder, ``nvidia/cu13``.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from .errors import CudaCompilerError, failure

FOLDER = "cu13"
NVRTC, BUILTINS = "libnvrtc.so.13", "libnvrtc-builtins.so.13.0"
_PACKAGES = {
    f"lib/{NVRTC}": "nvidia-cuda-nvrtc",
    f"lib/{BUILTINS}": "nvidia-cuda-nvrtc",
    "bin/ptxas": "nvidia-cuda-nvcc",
    "bin/fatbinary": "nvidia-cuda-nvcc",
    "include/cuda_fp16.h": "nvidia-cuda-runtime",
    "include/crt/mma.h": "nvidia-cuda-crt",
    "include/cccl/cuda/std/cstdint": "nvidia-cuda-cccl",
}
"""What is used, and who brings it."""


@dataclass(frozen=True)
class Toolkit:
    """The folder of the packages."""

    folder: Path

    @property
    def includes(self) -> list[Path]:
        """The folders of headers."""
        return [self.folder / "include", self.folder / "include" / "cccl"]

    def library(self, name: str) -> Path:
        """Return a shared library's path."""
        return self.folder / "lib" / name

    def program(self, name: str) -> Path:
        """Return a program's path."""
        return self.folder / "bin" / name


def has_toolkit() -> bool:
    """Return whether the packages are installed."""
    try:
        find_toolkit()
    except CudaCompilerError:
        return False
    return True


def find_toolkit() -> Toolkit:
    """Return the toolkit.

    Raises
    ------
    CudaCompilerError
        If a package is missing.
    """
    spec = importlib.util.find_spec("nvidia")
    missing = dict(_PACKAGES)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / FOLDER
        missing = {path: name for path, name in _PACKAGES.items() if not (folder / path).is_file()}
        if not missing:
            return Toolkit(folder)
    names = ", ".join(dict.fromkeys(missing.values()))
    raise failure(
        f"The compiler for CUDA is not installed: {names} of version 13.0 is missing.",
        "Install it: pip install 'bitfabric[cuda]'",
    )
