"""How much memory this process holds, and has held at most."""

from __future__ import annotations

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_MIB = 1024 * 1024


def peak_memory_mib() -> float:
    """Give the most memory this process has held at once, resident, in MiB.

    Linux's own high-water mark is used where there is one: `ru_maxrss` starts at what the parent
    held when it forked, so a small run started by a large program would look large.

    Returns
    -------
    float
        MiB; 0 where the system does not say (Windows).
    """
    if (kib := _status_kib("VmHWM:")) is not None:
        return kib / 1024
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MIB if sys.platform == "darwin" else peak / 1024


def current_memory_mib() -> float:
    """Give what this process holds now, resident, in MiB; the peak where only that is known."""
    kib = _status_kib("VmRSS:")
    return peak_memory_mib() if kib is None else kib / 1024


def _status_kib(field: str) -> float | None:
    """Read one `kB` line of /proc/self/status; None where the system has no such file."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(field):
                return float(line.split()[1])
    except OSError:
        pass
    return None
