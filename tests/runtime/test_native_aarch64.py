"""The native backends build for AArch64, against the headers that TVM's wheels bring."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from bitfabric.runtime.native.build import BUILT, include_folders, source

COMPILER = "aarch64-linux-gnu-g++"
AARCH64 = 183
"""EM_AARCH64, of an ELF header."""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(COMPILER), reason=f"needs {COMPILER}")
@pytest.mark.parametrize("kind", BUILT)
def test_a_backend_compiles_for_aarch64(kind: str, tmp_path: Path) -> None:
    made = tmp_path / "backend.o"
    folders = [f"-I{folder}" for folder in include_folders()]
    files = ["-c", str(source(kind)), "-o", str(made)]
    subprocess.run([COMPILER, "-std=c++17", "-fPIC", "-O0", *folders, *files], check=True)
    header = made.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert struct.unpack_from("<H", header, 18) == (AARCH64,)
