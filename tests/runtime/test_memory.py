"""Peak memory is this process's own."""

from __future__ import annotations

import subprocess
import sys


def _printed(program: str) -> str:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_peak_remembers_what_is_no_longer_held() -> None:
    # In a process of its own: one that ran other tests may hold as much in free blocks.
    program = (
        "from bitfabric.runtime.memory import current_memory_mib, peak_memory_mib\n"
        "before = current_memory_mib()\n"
        "block = bytearray(b'x') * (96 << 20)\n"
        "during = current_memory_mib()\n"
        "del block\n"
        "print(before, during, current_memory_mib(), peak_memory_mib())"
    )
    before, during, after, peak = map(float, _printed(program).split())
    assert during > before + 90
    assert after < during - 90
    assert peak >= during - 1


def test_the_peak_of_a_large_parent_is_not_inherited() -> None:
    program = (
        "import os, sys\n"
        "block = bytearray(b'x') * (300 << 20)\n"
        "os.execv(sys.executable, [sys.executable, '-c', "
        "'from bitfabric.runtime.memory import peak_memory_mib as p; print(p())'])"
    )
    assert 5 < float(_printed(program)) < 300
