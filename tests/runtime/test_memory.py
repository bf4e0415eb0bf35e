"""Peak memory is this process's own."""

from __future__ import annotations

import subprocess
import sys

from bitfabric.runtime.memory import current_memory_mib, peak_memory_mib


def test_the_peak_remembers_what_is_no_longer_held() -> None:
    before = current_memory_mib()
    block = bytearray(b"x") * (96 << 20)
    during = current_memory_mib()
    del block
    assert during > before + 90
    assert peak_memory_mib() >= during - 1


def test_the_peak_of_a_large_parent_is_not_inherited() -> None:
    program = (
        "import os, sys\n"
        "block = bytearray(b'x') * (300 << 20)\n"
        "os.execv(sys.executable, [sys.executable, '-c', "
        "'from bitfabric.runtime.memory import peak_memory_mib as p; print(p())'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert 5 < float(result.stdout) < 300
