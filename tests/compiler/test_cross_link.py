"""Modules for other systems: the form of the file, what they ask of it, and what is refused."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import tvm
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model, link
from bitfabric.compiler.platforms import PLATFORMS, find_platform, for_host
from bitfabric.models import RandomCheckpoint
from bitfabric.targets import FabricError, get_target, host_triple, this_host
from tvm.script import ir as I
from tvm.script import tirx as T

from ..parity.conftest import BASE

pytest.importorskip("ziglang")
FFI = "TVMFFIErrorSetRaisedFromCStrParts"
HOST_ONLY = {FFI}
COMPUTES = {FFI, "cosf", "logf", "memset"}
ANDROID, LINUX = "aarch64-linux-android", "aarch64-linux-gnu"
MODEL = RandomCheckpoint(BASE, seed=3, name="random:tiny")
OPTIONS = CompileOptions(context=12, lora=LoraOptions(rank=4))
needs_readelf = pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")


def module_for(folder: Path, target: str, triple: str | None) -> Path:
    """The module of a tiny model for a target beside a host."""
    chosen = get_target(target)
    chosen = for_host(chosen, triple) if triple else chosen
    return compile_model(MODEL, chosen, OPTIONS, folder / "tiny.fabric") / "module.so"


def readelf(option: str, module: Path) -> list[list[str]]:
    """The lines of readelf, in words."""
    command = ["readelf", "--wide", option, str(module)]
    return [
        line.split()
        for line in subprocess.run(
            command, check=True, capture_output=True, text=True
        ).stdout.splitlines()
    ]


@needs_readelf
@pytest.mark.parametrize(
    ("target", "triple", "machine", "undefined", "needed"),
    [
        ("adreno", None, "AArch64", HOST_ONLY, {"libtvm_ffi.so"}),
        ("adreno", "x86_64-linux-android", "X86-64", HOST_ONLY, {"libtvm_ffi.so"}),
        ("cpu-neon", ANDROID, "AArch64", COMPUTES, {"libm.so", "libc.so", "libtvm_ffi.so"}),
        ("cpu-neon", LINUX, "AArch64", COMPUTES, {"libm.so.6", "libc.so.6", "libtvm_ffi.so"}),
    ],
)
@pytest.mark.slow
def test_a_module_for_another_linux_asks_for_nothing_unexpected(
    target: str,
    triple: str | None,
    machine: str,
    undefined: set[str],
    needed: set[str],
    tmp_path: Path,
) -> None:
    if find_platform(triple or ANDROID) == find_platform(this_host()):
        pytest.skip("this machine is that system")
    module = module_for(tmp_path, target, triple)
    header = readelf("--file-header", module)
    assert any(line[:1] == ["Machine:"] and line[-1] == machine for line in header)
    dynamic = readelf("--dynamic", module)
    assert {line[-1].strip("[]") for line in dynamic if "(NEEDED)" in line} == needed
    # Code that is patched when it is loaded, which Android refuses, or a path of this machine.
    assert not [line for line in dynamic if line[1:2] in (["(TEXTREL)"], ["(RPATH)"])]
    symbols = [line for line in readelf("--dyn-syms", module) if "UND" in line and len(line) > 7]
    # Only what this model's kernels call: other activations or a dropout call fewer.
    found = {line[7].partition("@")[0] for line in symbols}
    assert FFI in found
    assert found <= undefined, found
    segments = readelf("--program-headers", module)
    pages = {line[-1] for line in segments if line[:1] == ["LOAD"]}
    assert pages == {"0x4000"}
    stack = next(line for line in segments if line[:1] == ["GNU_STACK"])
    assert stack[-2] == "RW"


@pytest.mark.slow
def test_a_module_for_a_mac_is_a_dylib_that_asks_for_nothing_unexpected(tmp_path: Path) -> None:
    if this_host().endswith("macos"):
        pytest.skip("this machine is a Mac")
    module = module_for(tmp_path, "cpu-neon", "arm64-macos")
    kind, platforms, libraries, undefined = read_mach_o(module.read_bytes())
    assert kind == ("arm64", "dylib")
    assert platforms == {"macos"}
    assert libraries <= {"/usr/lib/libSystem.B.dylib"}
    # A Mac's memset of zeros is called bzero, and its libSystem converts half precision.
    system = {"bzero", "__extendhfsf2", "__truncsfhf2"}
    assert f"_{FFI}" in undefined
    assert undefined <= {f"_{name}" for name in COMPUTES | system} | {"dyld_stub_binder"}


def read_mach_o(data: bytes) -> tuple[tuple[str, str], set[str], set[str], set[str]]:
    """Architecture and type, platforms, libraries and undefined symbols (Apple's loader.h)."""
    magic, cpu, _, kind, commands = struct.unpack_from("<5I", data)
    assert magic == 0xFEEDFACF
    place, platforms, libraries, undefined = 32, set(), set(), set()
    for _ in range(commands):
        command, size = struct.unpack_from("<2I", data, place)
        if command == 0x32:  # LC_BUILD_VERSION
            platforms.add({1: "macos"}.get(struct.unpack_from("<I", data, place + 8)[0], "other"))
        elif command == 0xC:  # LC_LOAD_DYLIB
            (offset,) = struct.unpack_from("<I", data, place + 8)
            libraries.add(data[place + offset : place + size].split(b"\0")[0].decode())
        elif command == 0x2:  # LC_SYMTAB
            table, count, strings, _ = struct.unpack_from("<4I", data, place + 8)
            for index in range(count):
                name, flags = struct.unpack_from("<IB", data, table + 16 * index)
                if flags & 0x0F == 0x01:  # undefined and external
                    start = strings + name
                    undefined.add(data[start : data.index(b"\0", start)].decode())
        place += size
    names = {0x0100000C: "arm64"}.get(cpu, "other"), {6: "dylib"}.get(kind, "other")
    return names, platforms, libraries, undefined


def test_code_that_calls_what_no_library_has_is_refused_here(tmp_path: Path) -> None:
    @I.ir_module
    class Module:
        @T.prim_func(s_tir=True)
        def main(a: T.Buffer((1,), "float32")) -> None:
            T.func_attr({"global_symbol": "main"})
            a[0] = T.call_extern("float32", "mystery", a[0])

    target = for_host(get_target("cpu-neon"), ANDROID)
    built = tvm.compile(Module, target=tvm.target.Target(dict(target.options)))
    with pytest.raises(FabricError, match="undefined symbol: mystery"):
        link.link(built, tmp_path / "module.so", target)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("aarch64-linux-android24", ANDROID),
        ("arm64-apple-macos14", "aarch64-apple-macos"),
        ("aarch64-macos", "aarch64-apple-macos"),
        ("x86_64-unknown-linux-gnu", "x86_64-linux-gnu"),
        ("riscv64-linux-gnu", None),
        ("aarch64-windows-gnu", None),
    ],
)
def test_a_triple_may_be_written_in_several_ways(written: str, meant: str | None) -> None:
    found = find_platform(written)
    assert (found.triple if found else None) == meant


def test_every_platform_links_for_itself() -> None:
    for platform in PLATFORMS:
        assert find_platform(platform.triple) is platform
        target = for_host(get_target("opencl"), platform.triple)
        command = link.linker(target)
        assert ("ziglang" in command) != platform.is_this_machine or shutil.which("c++") is None


def test_hosts_that_cannot_be_are_refused_by_name() -> None:
    with pytest.raises(FabricError, match="no host named 'toaster'"):
        for_host(get_target("adreno"), "toaster")
    with pytest.raises(FabricError, match="cpu-neon is a processor of aarch64"):
        for_host(get_target("cpu-neon"), "x86_64-linux-gnu")


def test_a_mac_links_for_itself_with_its_c_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    for name in ("cpu", "metal"):
        target = get_target(name)
        assert host_triple(target) == "aarch64-apple-macos"
        compiler, *options = link.linker(target)
        # A C++ compiler would give the conversions of 16-bit floats other names.
        assert compiler == "/usr/bin/cc"
        assert options[:3] == ["-shared", "-undefined", "dynamic_lookup"]
        assert options[-1].endswith("half_floats.c")
