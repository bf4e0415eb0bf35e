"""The native backends compile for other systems and processors, against TVM's headers.

Each source is compiled to an object by ziglang, which brings the systems' own headers; an object is
read to see what it is for. Linking takes the system's TVM, which no wheel of this machine has.
"""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from bitfabric.runtime.native.build import KINDS, compile_options, source

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs ziglang"),
]
ELF_AARCH64, COFF_X86_64, MACH_O_ARM64 = 183, 0x8664, 0x0100000C
"""What an object says of its processor: EM_AARCH64, IMAGE_FILE_MACHINE_AMD64, CPU_TYPE_ARM64."""


def processor(content: bytes) -> tuple[str, int]:
    """Return the form of an object and its processor's number there."""
    if content[:4] == b"\x7fELF":
        return "ELF", struct.unpack_from("<H", content, 18)[0]
    if content[:4] == b"\xcf\xfa\xed\xfe":
        return "Mach-O", struct.unpack_from("<I", content, 4)[0]
    return "COFF", struct.unpack_from("<H", content, 0)[0]


def compiled(target: str, file: Path, made: Path) -> subprocess.CompletedProcess[str]:
    """Compile a source for a target, as ziglang names it."""
    command = [sys.executable, "-m", "ziglang", "c++", "-target", target, "-O0", "-c"]
    return subprocess.run(
        [*command, *compile_options(), str(file), "-o", str(made)], capture_output=True, text=True
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("aarch64-linux-gnu", ("ELF", ELF_AARCH64)),
        ("aarch64-macos", ("Mach-O", MACH_O_ARM64)),
        ("x86_64-windows-gnu", ("COFF", COFF_X86_64)),
    ],
)
def test_a_backend_compiles_for_another_system(
    target: str, expected: tuple[str, int], kind: str, tmp_path: Path
) -> None:
    made = tmp_path / "backend.o"
    done = compiled(target, source(kind), made)
    assert done.returncode == 0, done.stderr
    assert processor(made.read_bytes()) == expected


def test_what_a_system_has_not_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.cc"
    file.write_text("#include <dlfcn.h>\nvoid* f() { return dlopen(0, RTLD_NOW); }\n")
    assert compiled("aarch64-macos", file, tmp_path / "mac.o").returncode == 0
    done = compiled("x86_64-windows-gnu", file, tmp_path / "windows.o")
    assert done.returncode != 0
    assert "dlfcn.h" in done.stderr
