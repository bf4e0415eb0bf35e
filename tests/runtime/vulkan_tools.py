"""What the tests of the Vulkan backend share: its functions, and modules assembled by hand."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitfabric.runtime.backends import load_backend
from bitfabric.targets import FabricError
from bitfabric.targets.ffi import tvm_ffi

CODES = {"int": 0, "uint": 1, "float": 2, "handle": 3}
GROUP = 64
READ, WRITE = 1, 2
V1_1, V1_2, V1_3 = (1 << 22 | minor << 12 for minor in (1, 2, 3))


def why_not() -> str | None:
    """Return why the tests can't run here, or None."""
    if shutil.which("spirv-as") is None:
        return "spirv-as is not installed (apt install spirv-tools)"
    try:
        load_backend("vulkan")
    except FabricError as error:
        return error.cause
    found = json.loads(call("bitfabric.vulkan.devices"))
    return found["error"] if isinstance(found, dict) else None


def call(name: str, *arguments: Any) -> Any:
    """Call a global function."""
    return tvm_ffi.get_global_func(name)(*arguments)


def devices() -> list[dict[str, Any]]:
    return json.loads(call("bitfabric.vulkan.devices"))


def memory() -> dict[str, int]:
    return json.loads(call("bitfabric.vulkan.memory", 0))


def sync() -> None:
    call("runtime.Device_StreamSync", device(), 0)


def device() -> Any:
    return tvm_ffi.Device("vulkan", 0)


def empty(shape: Sequence[int], dtype: str = "float32") -> Any:
    shape = tvm_ffi.Shape(tuple(shape))
    return call("runtime.TVMTensorAllocWithScope", shape, tvm_ffi.dtype(dtype), device(), None)


def upload(array: np.ndarray, tensor: Any = None) -> Any:
    tensor = empty(array.shape, str(array.dtype)) if tensor is None else tensor
    pointer = ctypes.c_void_p(array.ctypes.data)
    call("runtime.TVMTensorCopyFromBytes", tensor, pointer, array.nbytes)
    return tensor


def download(tensor: Any) -> np.ndarray:
    array = np.empty(tuple(tensor.shape), str(tensor.dtype))
    pointer = ctypes.c_void_p(array.ctypes.data)
    call("runtime.TVMTensorCopyToBytes", tensor, pointer, array.nbytes)
    return array


def view(tensor: Any, offset: int, shape: Sequence[int], dtype: str = "float32") -> Any:
    shape = tvm_ffi.Shape(tuple(shape))
    return call("bitfabric.vulkan.view", tensor, offset, shape, tvm_ffi.dtype(dtype))


@dataclass(frozen=True)
class Kernel:
    """A kernel of a module: its SPIR-V, and what the container says of it.

    ``arguments`` are (type, access, place), access 0 for a scalar.
    """

    name: str
    spirv: bytes
    arguments: tuple[tuple[str, int, int], ...]
    block: int
    grid: int = 0
    descriptors: bool = False
    spilled: bool = False
    foldable: bool = False
    vulkan: int = V1_2
    subgroup: int = 0
    shared: int = 0
    features: tuple[str, ...] = field(default=())


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def container(kernels: Sequence[Kernel], form: str = "bitfabric.spirv.1") -> bytes:
    """Return the code of a module."""
    data = text(form) + struct.pack("<Q", len(kernels))
    for kernel in kernels:
        flags = (kernel.descriptors, kernel.spilled, kernel.foldable, 0)
        numbers = (kernel.block, kernel.grid, kernel.subgroup, kernel.shared, GROUP, 1, 1)
        data += text(kernel.name) + struct.pack("<I4B7I", kernel.vulkan, *flags, *numbers)
        data += struct.pack("<Q", len(kernel.arguments))
        for kind, access, place in kernel.arguments:
            data += struct.pack("<BBHI", kind.startswith("handle"), access, 0, place)
        data += struct.pack("<Q", len(kernel.features)) + b"".join(map(text, kernel.features))
        data += text(kernel.spirv)
    return data


def module_bytes(
    kernels: Sequence[Kernel],
    tags: Sequence[str] = ("blockIdx.x", "threadIdx.x"),
    form: str = "spirv",
    code: bytes | None = None,
) -> bytes:
    """Return a device module as TVM writes it."""
    data = text(form) + struct.pack("<Q", len(kernels))
    for kernel in kernels:
        data += text(kernel.name) * 2 + struct.pack("<Q", len(kernel.arguments))
        for kind, _, _ in kernel.arguments:
            letters = kind.rstrip("0123456789")
            data += struct.pack("<BBH", CODES[letters], int(kind[len(letters) :]), 1)
        data += struct.pack("<Q", len(tags)) + b"".join(text(tag) for tag in tags)
        data += struct.pack("<Q", len(kernel.arguments)) + bytes(4 * len(kernel.arguments))
    return data + text(container(kernels) if code is None else code)


def load(data: bytes) -> Any:
    return call("ffi.Module.load_from_bytes.vulkan", data)


@functools.cache
def assemble(source: str) -> bytes:
    """Return the words of SPIR-V 1.3 that a listing stands for."""
    run = subprocess.run(
        ["spirv-as", "--target-env", "spv1.3", "-o", "-", "-"],
        input=source.encode(),
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout


HEAD = """
OpCapability Shader
OpCapability Int64
{capabilities}
OpMemoryModel {model} GLSL450
OpEntryPoint GLCompute %main "entry" %group %groups %lane
OpExecutionMode %main LocalSize 1 1 1
OpDecorate %group BuiltIn WorkgroupId
OpDecorate %groups BuiltIn NumWorkgroups
OpDecorate %lane BuiltIn LocalInvocationId
OpDecorate %sx SpecId 0
OpDecorate %sy SpecId 1
OpDecorate %sz SpecId 2
OpDecorate %folded SpecId 3
OpDecorate %size BuiltIn WorkgroupSize
OpDecorate %floats ArrayStride 4
OpDecorate %Block Block
OpMemberDecorate %Block 0 Offset 0
OpMemberDecorate %Block 1 Offset 8
OpMemberDecorate %Block 2 Offset 16
OpMemberDecorate %Block 3 Offset 20
OpMemberDecorate %Block 4 Offset 24
OpMemberDecorate %Block 5 Offset 32
OpMemberDecorate %Block 6 Offset 36
OpMemberDecorate %Block 7 Offset 40
{decorations}
%void = OpTypeVoid
%bool = OpTypeBool
%uint = OpTypeInt 32 0
%int = OpTypeInt 32 1
%long = OpTypeInt 64 1
%ulong = OpTypeInt 64 0
%float = OpTypeFloat 32
%uint3 = OpTypeVector %uint 3
%function = OpTypeFunction %void
%in_uint3 = OpTypePointer Input %uint3
%group = OpVariable %in_uint3 Input
%groups = OpVariable %in_uint3 Input
%lane = OpVariable %in_uint3 Input
%sx = OpSpecConstant %uint 1
%sy = OpSpecConstant %uint 1
%sz = OpSpecConstant %uint 1
%size = OpSpecConstantComposite %uint3 %sx %sy %sz
%folded = OpSpecConstantFalse %bool
%c0 = OpConstant %int 0
%c1 = OpConstant %int 1
%c2 = OpConstant %int 2
%c3 = OpConstant %int 3
%c4 = OpConstant %int 4
%c5 = OpConstant %int 5
%c6 = OpConstant %int 6
%c7 = OpConstant %int 7
%floats = OpTypeRuntimeArray %float
"""
BODY = """
%main = OpFunction %void None %function
%start = OpLabel
{prologue}
%gv = OpLoad %uint3 %group
%nv = OpLoad %uint3 %groups
%lv = OpLoad %uint3 %lane
%gx = OpCompositeExtract %uint %gv 0
%gy = OpCompositeExtract %uint %gv 1
%gz = OpCompositeExtract %uint %gv 2
%nx = OpCompositeExtract %uint %nv 0
%ny = OpCompositeExtract %uint %nv 1
%lx = OpCompositeExtract %uint %lv 0
%above = OpIMul %uint %gz %ny
%row = OpIAdd %uint %above %gy
%begin = OpIMul %uint %row %nx
%linear = OpIAdd %uint %begin %gx
%ex = OpLoad %uint %p5
%ey = OpLoad %uint %p6
%ez = OpLoad %uint %p7
%exy = OpIMul %uint %ex %ey
%all = OpIMul %uint %exy %ez
%past = OpUGreaterThanEqual %bool %linear %all
%out = OpLogicalAnd %bool %folded %past
%mine = OpSelect %uint %folded %linear %gx
%first = OpIMul %uint %mine %sx
%index = OpIAdd %uint %first %lx
%wide = OpUConvert %ulong %index
%signed = OpBitcast %long %wide
%n = OpLoad %long %p4
%below = OpSLessThan %bool %signed %n
%inside = OpLogicalNot %bool %out
%active = OpLogicalAnd %bool %below %inside
OpSelectionMerge %end None
OpBranchConditional %active %work %end
%work = OpLabel
{place}
%factor = OpLoad %float %p2
%shift = OpLoad %int %p3
%added = OpConvertSToF %float %shift
%value = OpLoad %float %px {aligned}
%product = OpFMul %float %value %factor
%sum = OpFAdd %float %product %added
OpStore %py %sum {aligned}
OpBranch %end
%end = OpLabel
OpReturn
OpFunctionEnd
"""
SCALE_TYPES = ("handle64", "handle64", "float32", "int32", "int64")


def members(storage: str, base: str) -> str:
    """Return the pointers to the members of the block of arguments, %p2 and on."""
    kinds = {2: "float", 3: "int", 4: "long", 5: "uint", 6: "uint", 7: "uint"}
    return "\n".join(
        f"%p{i} = OpAccessChain %{storage}_{kind} %{base} %c{i}" for i, kind in kinds.items()
    )


def pointers(storage: str, name: str) -> str:
    return "\n".join(
        f"%{name}_{kind} = OpTypePointer {storage} %{kind}"
        for kind in ("float", "int", "long", "uint")
    )


@functools.cache
def scale_kernel(interface: str = "addresses", name: str = "scale") -> Kernel:
    """y[i] = x[i] · factor + shift, for i < n; (y, x, factor, shift, n).

    ``interface`` is "addresses", "spilled" or "descriptors".
    """
    address = interface != "descriptors"
    first = "%PBlockFloats %PBlockFloats" if address else "%ulong %ulong"
    block = f"%Block = OpTypeStruct {first} %float %int %long %uint %uint %uint\n"
    aligned = "Aligned 4" if address else ""
    if address:
        capabilities = (
            "OpCapability PhysicalStorageBufferAddresses\n"
            'OpExtension "SPV_KHR_physical_storage_buffer"'
        )
        decorations = "OpDecorate %Floats Block\nOpMemberDecorate %Floats 0 Offset 0"
        types = (
            "OpTypeForwardPointer %PBlockFloats PhysicalStorageBuffer\n"
            "%Floats = OpTypeStruct %floats\n"
            "%PBlockFloats = OpTypePointer PhysicalStorageBuffer %Floats\n"
            f"{block}"
            "%at_float = OpTypePointer PhysicalStorageBuffer %float\n"
        )
        place = (
            "%y = OpLoad {0} %p0\n%x = OpLoad {0} %p1\n"
            "%py = OpAccessChain %at_float %y %c0 %index\n"
            "%px = OpAccessChain %at_float %x %c0 %index"
        ).format("%PBlockFloats")
    else:
        capabilities = ""
        decorations = "OpDecorate %Floats Block\nOpMemberDecorate %Floats 0 Offset 0\n" + "\n".join(
            f"OpDecorate %{buffer} DescriptorSet 0\nOpDecorate %{buffer} Binding {at}"
            for at, buffer in enumerate(("ybuffer", "xbuffer"))
        )
        types = (
            f"{block}%Floats = OpTypeStruct %floats\n"
            "%PFloats = OpTypePointer StorageBuffer %Floats\n"
            "%at_float = OpTypePointer StorageBuffer %float\n"
            "%ybuffer = OpVariable %PFloats StorageBuffer\n"
            "%xbuffer = OpVariable %PFloats StorageBuffer\n"
        )
        place = (
            "%py = OpAccessChain %at_float %ybuffer %c0 %index\n"
            "%px = OpAccessChain %at_float %xbuffer %c0 %index"
        )
    if interface == "spilled":
        decorations += "\nOpDecorate %Push Block\nOpMemberDecorate %Push 0 Offset 0"
        types += (
            "%PBlock = OpTypePointer PhysicalStorageBuffer %Block\n"
            "%Push = OpTypeStruct %PBlock\n"
            "%PPush = OpTypePointer PushConstant %Push\n"
            "%PPBlock = OpTypePointer PushConstant %PBlock\n"
            f"{pointers('PhysicalStorageBuffer', 'm')}\n"
            "%m_buffer = OpTypePointer PhysicalStorageBuffer %PBlockFloats\n"
            "%push = OpVariable %PPush PushConstant\n"
        )
        prologue = "%pp = OpAccessChain %PPBlock %push %c0\n%block = OpLoad %PBlock %pp\n"
        prologue += members("m", "block")
    else:
        types += (
            "%PBlock = OpTypePointer PushConstant %Block\n"
            f"{pointers('PushConstant', 'm')}\n"
            + ("%m_buffer = OpTypePointer PushConstant %PBlockFloats\n" if address else "")
            + "%block = OpVariable %PBlock PushConstant\n"
        )
        prologue = members("m", "block")
    if address:
        prologue += "\n" + "\n".join(
            f"%p{i} = OpAccessChain %m_buffer %block %c{i}" for i in range(2)
        )
    model = "PhysicalStorageBuffer64" if address else "Logical"
    head = HEAD.format(capabilities=capabilities, model=model, decorations=decorations)
    body = BODY.format(prologue=prologue, place=place, aligned=aligned)
    if interface == "spilled":
        # What is read through an address must say how it is aligned.
        lines = body.splitlines()
        for at, line in enumerate(lines):
            words = line.split()
            if len(words) > 4 and words[2] == "OpLoad" and words[4].startswith("%p"):
                wide = words[4] in ("%p0", "%p1", "%p4")
                if words[4] not in ("%pp", "%px"):
                    lines[at] = f"{line} Aligned {8 if wide else 4}"
        body = "\n".join(lines)
    places = (0, 8, 16, 20, 24) if address else (0, 1, 16, 20, 24)
    accesses = (WRITE, READ, 0, 0, 0)
    features = ("shaderInt64", *(("bufferDeviceAddress",) if address else ()))
    return Kernel(
        name,
        assemble(head + types + body),
        tuple(zip(SCALE_TYPES, accesses, places, strict=True)),
        block=48,
        grid=32,
        descriptors=not address,
        spilled=interface == "spilled",
        foldable=True,
        features=features,
    )


def scale_module(interface: str = "addresses") -> Any:
    return load(module_bytes([scale_kernel(interface)]))


def scale(kernel: Any, y: Any, x: Any, factor: float, shift: int, n: int) -> None:
    kernel(y, x, factor, shift, n, -(-n // GROUP), GROUP)


def fails(function: Any, *arguments: Any) -> str:
    """Return the message of the error that a call raises."""
    with pytest.raises((RuntimeError, ValueError, TypeError)) as caught:
        function(*arguments)
    return str(caught.value)


def run_process(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script with these tools in a process of its own."""
    root = Path(__file__).parents[2]
    start = f"import json, os, sys; sys.path.insert(0, {str(root)!r})\n"
    # `tests` as a package would import the compiler; the runtime alone is what is tested.
    start += f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    start += "from vulkan_tools import *\nload_backend('vulkan')\n"
    run = subprocess.run(
        [sys.executable, "-c", start + script],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return run


def in_process(script: str, **variables: str) -> Any:
    """Run a script; return what it prints last as JSON."""
    return json.loads(run_process(script, **variables).stdout.splitlines()[-1])


__all__ = [name for name in dir() if not name.startswith("_") and name != "annotations"]
