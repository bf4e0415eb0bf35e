"""What the tests of the HIP backend share: the library in ROCm's place, and what runs its launches.

A launch runs on the OpenCL device: the same kernel of a bundle that was laid out for OpenCL as the
other was for ROCm, over copies of the memory that the launch's addresses lead to.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .launch_trace import HANDLE, Tracer, form_of

LAUNCHED = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_void_p,
    ctypes.c_size_t,
)
FORM = struct.pack("<Q", 5) + b"hsaco"
FAILED = 719
"""hipErrorLaunchFailure."""


def build_standin(folder: Path) -> Path:
    """Compile the library."""
    library = folder / "libamdhip64.so"
    source = Path(__file__).with_name("standin_hip.cc")
    command = ["c++", "-std=c++17", "-O1", "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True)
    return library


class Kernel:
    """One kernel of a device module: its arguments and its launch tags."""

    def __init__(self, types: list[tuple[int, int]], tags: list[str]) -> None:
        self.types, self.tags = types, tags

    def arguments(self, packed: bytes) -> list[tuple[bool, Any]]:
        """Return each argument: whether it is an address, and the value."""
        found, at = [], 0
        for code, bits in self.types:
            size = bits // 8
            at = -(-at // size) * size
            (value,) = struct.unpack_from("<" + form_of(code, bits), packed, at)
            found.append((code == HANDLE, value))
            at += size
        assert at == len(packed), "more arguments than the kernel has"
        return found


def kernels_within(library: bytes) -> dict[str, Kernel]:
    """Return the kernels of the one ROCm module in a bundle's library, by name."""
    at = library.index(FORM) + len(FORM)

    def number(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(form, library, at)
        at += struct.calcsize(form)
        return int(value)

    def text() -> str:
        nonlocal at
        size = number("<Q")
        at += size
        return library[at - size : at].decode()

    found = {}
    for _ in range(number("<Q")):
        _key, name = text(), text()
        types = []
        for _ in range(number("<Q")):
            types.append((number("<B"), number("<B")))
            number("<H")
        tags = [text() for _ in range(number("<Q"))]
        for _ in range(number("<Q")):
            number("<i")
        found[name] = Kernel(types, tags)
    return found


def run_launches_by(
    library: ctypes.CDLL, kernels: dict[str, Kernel], lookup: Any, tracer: Tracer | None = None
) -> Any:
    """Let the launches run on the OpenCL device.

    Parameters
    ----------
    library : ctypes.CDLL
        The one in ROCm's place.
    kernels : dict
        What each is called with.
    lookup : callable
        ``lookup(name)`` returns the kernel for OpenCL.
    tracer : Tracer, optional
        Who writes the launches down.

    Returns
    -------
    object
        To be kept as long as launches run.
    """
    from .opencl_tools import download, empty, upload

    library.standin_extent.restype = ctypes.c_size_t
    library.standin_extent.argtypes = [ctypes.c_void_p]

    def copied(address: int) -> tuple[Any, np.ndarray]:
        size = library.standin_extent(address)
        if not size:
            raise ValueError(f"{address:#x} is not in memory")
        array = np.frombuffer((ctypes.c_char * size).from_address(address), "int8")
        return upload(array, empty(array.shape, "int8")), array

    def launch(name: bytes, groups: Any, threads: Any, packed: int, size: int) -> int:
        kernel = kernels[name.decode()]
        sizes = {f"blockIdx.{a}": groups[i] for i, a in enumerate("xyz")}
        sizes |= {f"threadIdx.{a}": threads[i] for i, a in enumerate("xyz")}
        tensors, values = [], []
        data = ctypes.string_at(packed, size)
        arguments = kernel.arguments(data)
        if tracer is not None:
            extents = {tag: sizes[tag] for tag in kernel.tags}
            rooms = {
                value: library.standin_extent(value) for address, value in arguments if address
            }
            tracer.before(name.decode(), extents, kernel.types, data, arguments, rooms)
        for is_address, value in arguments:
            if is_address:
                tensors.append(copied(value))
                value = tensors[-1][0]
            values.append(value)
        lookup(name.decode())(*values, *(sizes[tag] for tag in kernel.tags))
        for (tensor, array), before in zip(tensors, [t[1].copy() for t in tensors], strict=True):
            # What a kernel leaves as it is must not overwrite what it changes through another.
            after = download(tensor)
            changed = after != before
            np.copyto(array, after, where=changed)
        if tracer is not None:
            tracer.after()
        return 0

    def guarded(*arguments: Any) -> int:
        try:
            return launch(*arguments)
        except Exception as error:
            print(f"a launch failed: {error!r}", file=sys.stderr)
            return FAILED

    kept = LAUNCHED(guarded)
    library.standin_on_launch(kept)
    return kept


def _device_modules(module: Any, kind: str) -> list[Any]:
    """Return the modules of a kind among what a module imports, and what these do."""
    found = [module] if module.kind == kind else []
    return found + [each for other in module.imports for each in _device_modules(other, kind)]


def _opencl_kernels(bundle: Path) -> Callable[[str], Any]:
    """Return what looks up the kernels of a bundle for OpenCL by their names."""
    from bitfabric.targets.ffi import tvm_ffi

    (device,) = _device_modules(tvm_ffi.load_module(str(bundle / "module.so")), "opencl")
    return device.get_function


def run_on_standin(bundle: Path, opencl: Path, arguments: list[str], plan: Path | None) -> None:
    """Run ``fabric`` with arguments, a bundle for ROCm on the kernels of the same for OpenCL.

    What was launched is written beside the plan of it, if there is one.
    """
    from bitfabric.cli import main
    from bitfabric.runtime.backends import load_backend

    for kind in ("opencl", "rocm"):
        load_backend(kind)
    library = ctypes.CDLL(os.environ["FABRIC_HIP_LIB"])
    kernels = kernels_within((bundle / "module.so").read_bytes())
    tracer = None if plan is None else Tracer(plan)
    kept: Callable[..., int] = run_launches_by(library, kernels, _opencl_kernels(opencl), tracer)
    main(arguments, standalone_mode=True)
    del kept


def run_as_planned(opencl: Path, arguments: list[str], plan: Path, device: Path) -> None:
    """Run ``fabric`` with arguments that name a bundle of `compile_plan`; write the launches.

    It takes checkpoints of the bundle of the device for its own.
    """
    from bitfabric.cli import main
    from bitfabric.runtime import open_bundle, trainer
    from bitfabric.runtime.backends import load_backend

    from .launch_recorder import Recorder
    from .opencl_tools import download, empty, upload

    identity = trainer.bundle_fingerprint(open_bundle(device))
    trainer.bundle_fingerprint = lambda bundle: identity
    load_backend("opencl")
    lookup = _opencl_kernels(opencl)

    def execute(kernel: str, values: list[Any], extents: dict[str, int]) -> None:
        tensors = {
            i: upload(value.view("int8"), empty(value.shape, "int8"))
            for i, value in enumerate(values)
            if isinstance(value, np.ndarray)
        }
        given = [tensors.get(i, value) for i, value in enumerate(values)]
        lookup(kernel)(*given, *extents.values())
        for i, tensor in tensors.items():
            values[i][:] = download(tensor).view("uint8")

    Recorder(plan, execute).install()
    main(arguments, standalone_mode=True)
