"""TVM's runtime library: found in the wheel without importing the package, and loaded once."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import sys
from contextlib import suppress
from pathlib import Path

from ..targets import FabricError

LIBRARY = {"darwin": "libtvm_runtime.dylib", "win32": "tvm_runtime.dll"}


GROUPS = Path("/sys/fs/cgroup")
"""Where Linux tells what a group of processes, such as a container, may use."""


def processors() -> int:
    """Return how many processors this process may use: by its affinity, and by its share of time.

    A container on a large machine sees all its processors and may have the time of two. More
    threads than that only wait for each other.
    """
    found = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        found = len(os.sched_getaffinity(0))
    share = time_share(GROUPS, Path("/proc/self/cgroup"))
    return found if share is None else max(1, min(found, math.ceil(share)))


def time_share(groups: Path, own: Path) -> float | None:
    """Return how many processors' time a process' group and those around it may have.

    Parameters
    ----------
    groups : pathlib.Path
        The tree of groups (cgroup v2).
    own : pathlib.Path
        The file that names the process' group.

    Returns
    -------
    float or None
        None where there is no bound.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    name = next((line[3:] for line in lines if line.startswith("0::")), None)
    if name is None:
        return None
    folder, found = groups / name.strip("/"), []
    while folder == groups or groups in folder.parents:
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
            found.append(float(quota) / float(period))
        folder = folder.parent
    # "max" is no number, so that a group without a bound adds none.
    return min(found, default=None)


LOOKS = 2000
"""How often a thread looks for work before it sleeps: about a millisecond, and kernels follow one
another within microseconds."""


def prepare_threads() -> None:
    """Have TVM take a thread for every processor, and bind each to one where it has them all.

    By itself it takes half of the processors, on the belief that the others are siblings, and
    binds its threads to the machine's first ones: outside of what the process was confined to, and
    to the same ones in each of several processes. And it has a thread look for work 300,000 times,
    letting others run each time, before it sleeps or ends: with other programs about, that is
    minutes at the end of a process.
    """
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", str(LOOKS))
    threads = os.environ.setdefault("TVM_NUM_THREADS", str(processors()))
    if threads != str(os.cpu_count()):
        os.environ.setdefault("TVM_BIND_THREADS", "0")


def load_runtime() -> None:
    """Load TVM's runtime library, once, with a thread for every processor.

    Raises
    ------
    FabricError
        If the package apache-tvm is not installed.
    """
    prepare_threads()
    spec = importlib.util.find_spec("tvm")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "lib" / LIBRARY.get(sys.platform, "libtvm_runtime.so")
        if path.is_file():
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
            return
    raise FabricError(
        "TVM's runtime library is not installed.",
        "Install it: pip install apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1",
    )
