"""The HIP backend call by call, on the library in ROCm's place, which runs commands only when it
must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bitfabric.compiler.rocm import codegen
from bitfabric.compiler.self_test import self_test_kernels
from bitfabric.runtime.backends import backend_status
from bitfabric.targets import get_target

from .hip_tools import build_standin

pytestmark = pytest.mark.skipif(
    backend_status("rocm")["problem"] is not None, reason="the backend can't be built here"
)
NAME = "floats_kernel"
"""A kernel of the code object, which here takes whatever a test says."""
TOOLS = """
import ctypes, json, os, struct, sys
from pathlib import Path
import numpy as np
from bitfabric.runtime.backends import devices, load_backend
from bitfabric.targets.ffi import tvm_ffi
from tests.runtime.hip_tools import LAUNCHED
load_backend("rocm")
call = lambda name, *a: tvm_ffi.get_global_func(name)(*a)
device = tvm_ffi.Device("rocm", 0)
address = lambda array: ctypes.c_void_p(array.ctypes.data)
def empty(shape, dtype="float32"):
    shape = tvm_ffi.Shape(tuple(shape))
    return call("runtime.TVMTensorAllocWithScope", shape, tvm_ffi.dtype(dtype), device, None)
def upload(array, tensor=None):
    tensor = empty(array.shape, str(array.dtype)) if tensor is None else tensor
    call("runtime.TVMTensorCopyFromBytes", tensor, address(array), array.nbytes)
    return tensor
def download(tensor):
    array = np.empty(tuple(tensor.shape), str(tensor.dtype))
    call("runtime.TVMTensorCopyToBytes", tensor, address(array), array.nbytes)
    return array
def text(value):
    return struct.pack("<Q", len(value)) + value
def module(code, types, form=b"hsaco", tags=(b"blockIdx.x", b"threadIdx.x")):
    data = text(form) + struct.pack("<Q", 1) + 2 * text(b"floats_kernel")
    data += struct.pack("<Q", len(types)) + b"".join(struct.pack("<BBH", *t, 1) for t in types)
    data += struct.pack("<Q", len(tags)) + b"".join(text(tag) for tag in tags)
    data += struct.pack("<Q", len(types)) + bytes(4 * len(types)) + text(code)
    return call("ffi.Module.load_from_bytes.hip", data)
def attempt(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return str(error).strip().splitlines()[0]
code = Path(os.environ["CODE"]).read_bytes()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the library and the code of the self-test's kernels for gfx90a."""
    from bitfabric.compiler.rocm.container import pack_code

    place = tmp_path_factory.mktemp("hip")
    build_standin(place)
    made: dict[str, codegen.Made] = {}
    plain = codegen.compile_kernels

    def noted(*arguments: Any) -> dict[str, codegen.Made]:
        made.update(plain(*arguments))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codegen, "compile_kernels", noted)
        self_test_kernels(get_target("rocm-gfx90a"), 64, 2)
    (place / "code").write_bytes(pack_code({name: each.code for name, each in made.items()}))
    return place


def run(folder: Path, script: str, **variables: str) -> Any:
    """Run a script with the tools above in a process of its own; return what it prints as JSON."""
    here = str(Path(__file__).parents[2])
    environment = {
        "FABRIC_HIP_LIB": str(folder / "libamdhip64.so"),
        "CODE": str(folder / "code"),
        "STANDIN_TRACE": str(folder / "trace"),
    }
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {here!r})\n{TOOLS}\n{script}"],
        env={**os.environ, **environment, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_device_says_what_it_is(folder: Path) -> None:
    (found,) = run(folder, "print(json.dumps(devices('rocm')))")
    assert found["name"] == "AMD Instinct MI250X"
    assert found["architecture"] == "gfx90a:sramecc+:xnack-"
    assert found["driver"] == "HIP 6.3.42134"
    assert found["subgroup_sizes"] == [64]
    assert found["global_memory"] == 1 << 32
    assert found["local_memory"] == 64 << 10
    assert (found["max_threads"], found["compute_units"], found["clock_mhz"]) == (1024, 110, 1700)


def test_bytes_arrive_though_their_source_changes_at_once(folder: Path) -> None:
    script = """
results = []
for size in (1, 1000, 16384, 16385, 300000):
    source = np.arange(size, dtype="float32")
    tensor = upload(source)
    right = source.copy()
    source[:] = -1
    results.append(bool((download(tensor) == right).all()))
ring, tensors = np.empty(4096, "float32"), []
for i in range(200):
    tensor = empty((4096,))
    ring[:] = i
    call("bitfabric.rocm.write", tensor, 0, address(ring), ring.nbytes)
    tensors.append(tensor)
results.append(all((download(t) == i).all() for i, t in enumerate(tensors)))
print(json.dumps(results))
"""
    assert run(folder, script) == [True] * 6
    assert "refused" not in (folder / "trace").read_text()


def test_views_and_fills_touch_their_part_alone(folder: Path) -> None:
    script = """
whole = upload(np.arange(4096, dtype="float32"))
part = call("bitfabric.rocm.view", whole, 4 * 128, tvm_ffi.Shape((64,)), tvm_ffi.dtype("float32"))
first = download(part)
call("bitfabric.rocm.clear", part)
wrong = attempt(
    call, "bitfabric.rocm.view", whole, 4, tvm_ffi.Shape((4,)), tvm_ffi.dtype("float32")
)
print(json.dumps([first.tolist(), download(whole).tolist(), wrong]))
"""
    first, whole, wrong = run(folder, script)
    assert first == list(range(128, 192))
    assert whole == [0 if 128 <= i < 192 else i for i in range(4096)]
    assert "must start at a multiple of 256 bytes, not at 4" in wrong


def test_arguments_lie_where_the_kernel_reads_them(folder: Path) -> None:
    # A pointer, then numbers of several widths, each at a multiple of its size.
    script = """
library, seen = ctypes.CDLL(os.environ["FABRIC_HIP_LIB"]), []
def launched(name, groups, threads, packed, size):
    packed = ctypes.string_at(packed, size)
    seen.append([name.decode(), list(groups[:3]), list(threads[:3]), packed])
    return 0
kept = LAUNCHED(launched)
library.standin_on_launch(kept)
library.standin_extent.restype, library.standin_extent.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
types = [(3, 64), (0, 32), (2, 64), (0, 8), (3, 64), (2, 32)]
tags = (b"blockIdx.y", b"threadIdx.x", b"blockIdx.x")
kernel = module(code, types, tags=tags)["floats_kernel"]
x, y = upload(np.ones(8, "float32")), upload(np.ones(100000, "float32"))
kernel(x, -5, 2.5, 7, y, 0.5, 3, 64, 9)
before = len(seen)
download(x)
((name, groups, threads, packed),) = seen
a, i, d, b, c, f = struct.unpack("<Qi4xdb7xQf", packed)
there = [library.standin_extent(a) >= 32, library.standin_extent(c) == 401408]
print(json.dumps([before, name, groups, threads, [i, d, b, f], there, len(packed)]))
"""
    before, name, groups, threads, values, there, size = run(folder, script)
    assert before == 0  # nothing runs before somebody waits
    assert name == NAME
    assert (groups, threads) == ([9, 3, 1], [64, 1, 1])
    assert values == [-5, 2.5, 7, 0.5]
    assert there == [True, True]
    assert size == 44


def test_a_recorded_call_is_launched_again_with_the_same_arguments(folder: Path) -> None:
    script = """
kernel = module(code, [(3, 64), (0, 32)])["floats_kernel"]
x = upload(np.ones(8, "float32"))
recorder = call("bitfabric.rocm.recorder", 0)
replay = recorder(lambda: kernel(x, 3, 2, 64), lambda result: None)
for _ in range(3):
    replay(False)
times = json.loads(replay(True))
other = recorder(lambda: upload(np.ones(8, "float32"), x), lambda result: None)
print(json.dumps([times, other is None]))
"""
    times, refused = run(folder, script)
    assert [name for name, _ in times] == [NAME]
    assert times[0][1] == 10000
    assert refused
    launches = [
        line for line in (folder / "trace").read_text().splitlines() if line.startswith("launch")
    ]
    assert len(launches) == 5
    assert len(set(launches)) == 1


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        (
            "[empty((1 << 40,))]",
            {},
            "ROCm out of memory: device 0 (AMD Instinct MI250X) has no room",
        ),
        ("module(b'nothing', [])", {}, "is no bundle of code objects"),
        ("module(code, [], b'spirv')", {}, "has the format spirv; only hsaco"),
        ("module(code[:-9], [])", {}, "truncated or damaged"),
        (
            "module(code, [])['floats_kernel'](1, 64)",
            {"STANDIN_ARCHITECTURE": "gfx1100"},
            "is gfx1100, and the module has code for gfx90a",
        ),
        (
            "module(code, [])['floats_kernel'](1, 512)",
            {},
            "Launching kernel floats_kernel with 1x1x1 groups of 512x1x1 threads on device 0",
        ),
        (
            "module(code.replace(b'floats_kernel', b'hidden_kernel'), [])['floats_kernel'](1, 64)",
            {},
            "hipModuleGetFunction of floats_kernel",
        ),
    ],
)
def test_what_can_not_be_done_is_a_sentence(
    folder: Path, script: str, variables: dict[str, str], message: str
) -> None:
    told = run(folder, f"print(json.dumps(attempt(lambda: {script})))", **variables)
    assert message in told


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"FABRIC_HIP_LIB": "/nowhere/libamdhip64.so"}, "no HIP library could be opened; tried"),
        ({"FABRIC_HIP_LIB": "libm.so.6"}, "libm.so.6 has no hipInit: ROCm 6 is needed."),
        ({"STANDIN_DEVICES": "0"}, "lists no device that it can use"),
        ({"STANDIN_INIT": "3"}, "does not start: hipErrorNotInitialized (3)"),
    ],
)
def test_without_a_device_a_sentence_says_why(
    folder: Path, variables: dict[str, str], message: str
) -> None:
    told = run(folder, "print(json.dumps(attempt(devices, 'rocm')))", **variables)
    assert told.startswith("ROCm can't be used: ")
    assert message in told
