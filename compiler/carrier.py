"""A device module in a process that has not loaded the device's backend.

TVM has none for the kinds whose code is our own, and for CUDA one that carries source alone. So the
bytes travel as the one constant of TVM's ``const_loader``, named after their kind, and are given
their true kind where an executable is linked: nothing native is needed to compile.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import tvm
import tvm_ffi

_CARRIER = "const_loader"
_PREFIX = "bitfabric."
_HOST_CODE = "_lib"
"""The kind of the library itself in the list of modules; nothing follows it."""


def device_module(kind: str, content: bytes) -> tvm.runtime.Module:
    """Return a module of a kind such as ``vulkan``; without its backend what carries the bytes."""
    load = tvm_ffi.get_global_func(f"ffi.Module.load_from_bytes.{kind}", allow_missing=True)
    if load is not None:
        return load(content)
    tensor = tvm.runtime.tensor(np.frombuffer(content, "uint8"))
    return tvm_ffi.get_global_func(f"ffi.Module.create.{_CARRIER}")({_PREFIX + kind: tensor}, {})


def pack_imports(module: tvm.runtime.Module, system_library: bool, prefix: str, folder: str) -> str:
    """Write the modules that a library imports as an object file; see ``export_library``.

    Returns
    -------
    str
        The file's path.
    """
    packed = tvm_ffi.get_global_func("runtime.ModulePackImportsToTensor")(module)
    content = _with_true_kinds(packed.numpy().tobytes(), _carried(module))
    (host,) = [m for m in module._collect_dso_modules() if m.kind == "llvm"]
    target = host.get_function("_get_target_string")()
    write = tvm_ffi.get_global_func("codegen.codegen_blob")
    path = Path(folder) / f"{prefix}devc.o"
    write(content, system_library, target, prefix).write_to_file(str(path))
    return str(path)


def _carried(module: tvm.runtime.Module) -> list[tuple[str, bytes]]:
    """Return the kinds and bytes of the device modules that a module imports, in TVM's order."""
    carriers = module._collect_from_import_tree(lambda m: m.kind == _CARRIER)
    found = [carrier.get_function("get_const_var_tensor")() for carrier in carriers]
    return [
        (str(name).removeprefix(_PREFIX), tensor.numpy().tobytes())
        for tensors in found
        for name, tensor in tensors.items()
        if str(name).startswith(_PREFIX)
    ]


def _with_true_kinds(packed: bytes, carried: list[tuple[str, bytes]]) -> bytes:
    """Return TVM's list of modules with the device modules in place of their carriers.

    The list is: u64 bytes | list of u64: rows | list of u64: children | a kind and, but for the
    library itself, the bytes of each module; a text is a u64 length and its bytes.
    """

    def number(at: int) -> int:
        return int(struct.unpack_from("<Q", packed, at)[0])

    def text(at: int) -> tuple[bytes, int]:
        end = at + 8 + number(at)
        return packed[at + 8 : end], end

    modules = number(8) - 1
    at = 8
    for _ in range(2):
        at += 8 + 8 * number(at)
    parts = [packed[8:at]]
    for _ in range(modules):
        kind, at = text(at)
        parts.append(kind)
        if kind == _HOST_CODE.encode():
            continue
        content, at = text(at)
        inside = next((module for module in carried if module[1] in content), None)
        if kind == _CARRIER.encode() and inside is not None:
            parts[-1], content = inside[0].encode(), inside[1]
        parts.append(content)
    head, *texts = parts
    whole = head + b"".join(struct.pack("<Q", len(part)) + part for part in texts)
    return struct.pack("<Q", len(whole)) + whole
