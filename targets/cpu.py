"""Processors: x86-64 with AVX-512 VNNI or AVX2, Arm with NEON dot products, and any other."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from .target import Target

AVX512_VNNI = Target(
    name="cpu-avx512",
    family="cpu",
    description="x86-64 with AVX-512 and VNNI (Cascade Lake, Ice Lake, Zen 4 and later)",
    options={"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "cascadelake"},
    device="cpu",
    vector_bytes=64,
    features=frozenset({"avx512_vnni", "avx512", "avx2", "fma"}),
)
AVX2 = Target(
    name="cpu-avx2",
    family="cpu",
    description="x86-64 with AVX2 and FMA (Haswell, Zen and later)",
    options={"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell"},
    device="cpu",
    vector_bytes=32,
    features=frozenset({"avx2", "fma"}),
)
NEON_DOT = Target(
    name="cpu-neon",
    family="cpu",
    description="64-bit Arm with dot products (Cortex-A76, Apple M1 and later)",
    options={
        "kind": "llvm",
        "mtriple": "aarch64-linux-gnu",
        "mattr": ["+v8.2a", "+neon", "+dotprod"],
    },
    device="cpu",
    vector_bytes=16,
    features=frozenset({"neon_dot"}),
)
X86_64 = Target(
    name="cpu-x86-64",
    family="cpu",
    description="any 64-bit x86 processor",
    options={"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"},
    device="cpu",
    vector_bytes=16,
)
_CASCADE_LAKE = frozenset(f"avx512{part}" for part in ("f", "cd", "dq", "bw", "vl", "_vnni"))
TARGETS = (AVX512_VNNI, AVX2, NEON_DOT, X86_64)


def cpu_flags() -> frozenset[str]:
    """Return this processor's feature flags as Linux names them; empty where it does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def processor() -> tuple[str, str, int]:
    """Return what this machine's processor calls itself, its model and stepping, and its threads.

    Only the threads that this process may use count.
    """
    fields: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    names = ("cpu family", "model", "stepping", "CPU implementer", "CPU part")
    detail = " ".join(f"{name} {fields[name]}" for name in names if fields.get(name))
    name = fields.get("model name") or platform.processor() or platform.machine()
    if hasattr(os, "sched_getaffinity"):
        return name, detail, len(os.sched_getaffinity(0))
    return name, detail, os.cpu_count() or 1


def machine() -> str:
    """Return this machine's architecture as target triples begin with it."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def host_cpu() -> Target:
    """Return the best target that this machine's processor runs."""
    if machine() == "aarch64":
        return NEON_DOT
    flags = cpu_flags()
    if flags >= _CASCADE_LAKE:
        return AVX512_VNNI
    return AVX2 if {"avx2", "fma"} <= flags else X86_64
