"""What the OpenCL backend says when something is wrong, with real faults and with injected ones."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from .opencl_tools import (
    GROUP,
    SCALE,
    SCALE_TYPES,
    call,
    empty,
    fails,
    in_process,
    load,
    module_bytes,
    scale_module,
    upload,
    view,
    why_not,
)

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no OpenCL: {REASON}")
LAUNCH = """
module = scale_module()
y = upload(np.zeros(8, "float32"))
def launch():
    scale(module["scale"], y, y, 1.0, 3, 8)
    return float(download(y).sum())
def attempt(function):
    try:
        return function()
    except Exception as error:
        return str(error)
"""


def test_an_allocation_that_is_too_large() -> None:
    message = fails(empty, (1 << 40,))
    assert message.startswith("OpenCL out of memory: device 0")
    assert "4398046511104 bytes (4.0 TiB)" in message
    assert "in use" in message
    assert "one buffer may have" in message
    assert empty((4,)) is not None


def test_bytes_that_are_no_module() -> None:
    data = module_bytes({"scale": (SCALE, SCALE_TYPES)})
    for end in range(0, len(data), 7):
        assert "truncated" in fails(load, data[:end])
    assert "too many" in fails(load, data + b"x")
    assert "truncated" in fails(load, data.replace((5).to_bytes(8, "little"), b"\xff" * 8, 1))
    assert "format spirv" in fails(load, module_bytes({}, form="spirv"))


def test_kernels_that_can_not_be_made() -> None:
    missing = load(module_bytes({"a": ("", [])})[:-1] + b" ")
    assert missing is not None
    broken = load(module_bytes({"broken": ("__kernel void broken() { nonsense; }\n", [])}))
    message = fails(broken["broken"], 1, 1)
    assert message.startswith("OpenCL error: Compiling kernel broken for device 0")
    assert "CL_BUILD_PROGRAM_FAILURE" in message
    assert "nonsense" in message
    other = load(module_bytes({"a": ("__kernel void b() {}\n", [])}))
    assert "clCreateKernel of a failed" in fails(other["a"], 1, 1)
    half = load(module_bytes({"half": ("", ["float16"])}))
    assert "scalar of type float16" in fails(lambda: half["half"])
    shared = load(module_bytes({"a": ("", [])}, tags=["tirx.use_dyn_shared_memory"]))
    assert "launch parameter tirx.use_dyn_shared_memory" in fails(lambda: shared["a"])
    with pytest.raises(AttributeError):
        _ = broken["absent"]


def test_launches_that_are_wrong() -> None:
    kernel, y = scale_module()["scale"], upload(np.zeros(4, "float32"))
    assert "takes 5 arguments and 2 launch extents, not 3 values" in fails(kernel, y, y, 1.0)
    message = fails(kernel, y, y, 1.0, 1, 4, 1, 1 << 20)
    assert message.startswith("OpenCL error: Launching kernel scale with 1x1x1 groups of 1048576x")
    assert "CL_INVALID_WORK_GROUP_SIZE" in message
    assert "may have" in message
    host = np.zeros(4, "float32")
    assert "takes device memory as argument 0" in fails(kernel, host, y, 1.0, 1, 4, 1, GROUP)
    kernel(y, y, 1.0, 1, 4, 1, GROUP)  # and after all that, it works


def test_views_that_are_wrong() -> None:
    alignment = json.loads(call("bitfabric.opencl.devices"))[0]["alignment"]
    whole = empty((4 * alignment,), "uint8")
    message = fails(view, whole, alignment // 2, (1,), "uint8")
    assert f"must start at a multiple of {alignment} bytes, not at {alignment // 2}" in message
    for offset, count in ((4 * alignment, 1), (0, 4 * alignment + 1), (-alignment, 1)):
        assert "do not lie within" in fails(view, whole, offset, (count,), "uint8")


def test_a_device_that_is_not_there() -> None:
    count = len(json.loads(call("bitfabric.opencl.devices")))
    assert f"there is no device {count + 3}" in fails(call, "bitfabric.opencl.memory", count + 3)


@pytest.mark.parametrize("library", ["/nonsense/libOpenCL.so", "libm.so.6"])
def test_a_driver_that_is_missing(library: str) -> None:
    script = """
found = json.loads(call("bitfabric.opencl.devices"))
try:
    empty((4,))
except RuntimeError as error:
    message = str(error)
exists = call("runtime.GetDeviceAttr", 4, 0, 0)
print(json.dumps([found, message, exists, len(module_bytes({})) > 0 and why_not()]))
"""
    found, message, exists, why = in_process(script, FABRIC_OPENCL_LIB=library)
    assert library in found["error"]
    assert "OpenCL" in found["error"]
    assert message.startswith("OpenCL driver missing: ")
    assert found["error"] in message
    assert exists == 0
    assert why == found["error"]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a driver whose calls fail on demand."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("the faulty driver needs a C compiler")
    library = tmp_path_factory.mktemp("driver") / "libfaulty.so"
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-o",
        library,
        Path(__file__).parent / "faulty_driver.c",
    ]
    run = subprocess.run(
        [*command, "-Wl,--no-as-needed", "-l:libOpenCL.so.1", "-ldl"],
        capture_output=True,
        text=True,
    )
    if run.returncode:
        pytest.skip(f"the faulty driver can't be linked: {run.stderr.strip()}")
    return str(library)


OUT_OF_MEMORY = {
    -4: "MEM_OBJECT_ALLOCATION_FAILURE",
    -5: "OUT_OF_RESOURCES",
    -6: "OUT_OF_HOST_MEMORY",
    -61: "INVALID_BUFFER_SIZE",
}


@pytest.mark.parametrize(("status", "name"), OUT_OF_MEMORY.items())
def test_a_launch_without_memory(faulty: str, status: int, name: str) -> None:
    script = LAUNCH + "print(json.dumps(attempt(launch)))"
    message = in_process(script, FABRIC_OPENCL_LIB=faulty, FAULT_LAUNCH=str(status))
    assert message.startswith(
        "OpenCL out of memory: Launching kernel scale with 1x1x1 groups of 64"
    )
    assert f"CL_{name} ({status})" in message


def test_a_launch_without_memory_goes_through_once_what_is_kept_is_given_back(faulty: str) -> None:
    script = (
        LAUNCH
        + """
kept = empty((1 << 22,), "uint8"); del kept
before = memory()["reserved"]
print(json.dumps([attempt(launch), before - memory()["reserved"]]))
"""
    )
    total, given_back = in_process(script, FABRIC_OPENCL_LIB=faulty, FAULT_LAUNCH_ONCE="-4")
    assert total == 24.0
    assert given_back == 1 << 22


def test_an_allocation_uses_what_other_sizes_keep(faulty: str) -> None:
    script = """
def attempt(size):
    try:
        return empty((size,), "uint8")
    except RuntimeError as error:
        return str(error)
kept = [attempt(2 << 20) for _ in range(3)]
del kept
small = [attempt(1000) for _ in range(100)]
del small
held = attempt(7 << 20)
print(json.dumps([isinstance(held, str), attempt(2 << 20), memory()["reserved"]]))
"""
    failed, message, reserved = in_process(
        script, FABRIC_OPENCL_LIB=faulty, FAULT_MEMORY=str(8 << 20)
    )
    assert not failed
    assert message.startswith("OpenCL out of memory: device 0")
    assert "7340032 bytes (7.0 MiB) are in use" in message
    assert reserved == 7 << 20


@pytest.mark.parametrize("status", [-2, -5, -36])
def test_a_device_that_is_lost(faulty: str, status: int, tmp_path: Path) -> None:
    script = (
        LAUNCH
        + """
scale(module["scale"], y, y, 1.0, 3, 8)
open(os.environ["FAULT_WHEN"], "w").close()
print(json.dumps(attempt(sync)))
"""
    )
    when = str(tmp_path / "now")
    message = in_process(
        script, FABRIC_OPENCL_LIB=faulty, FAULT_FINISH=str(status), FAULT_WHEN=when
    )
    assert message.startswith("OpenCL device lost: Waiting for device 0")
    assert f"({status})" in message


COUNT = (
    LAUNCH
    + """
assert launch() == 24.0
print(call("bitfabric.opencl.programs"))
"""
)


def fnv(data: bytes) -> int:
    """The 64-bit FNV-1a hash."""
    found = 14695981039346656037
    for byte in data:
        found = (found ^ byte) * 1099511628211 % 2**64
    return found


@pytest.mark.slow
def test_compiled_kernels_are_kept_on_disk_and_damage_is_noticed(tmp_path: Path) -> None:
    def run() -> tuple[int, int]:
        counts = in_process(COUNT, BITFABRIC_CACHE=str(tmp_path))
        return counts["compiled"], counts["loaded"]

    assert run() == (1, 0)
    assert run() == (0, 1)
    (entry,) = (tmp_path / "opencl").iterdir()
    good = entry.read_bytes()
    damaged = bytearray(good)
    damaged[-100] ^= 1
    for bad in (bytes(damaged), good[: len(good) // 2], b"", b"nonsense" * 1000):
        entry.write_bytes(bad)
        assert run() == (1, 0)
        assert entry.read_bytes()[:17] == good[:17]
        assert run() == (0, 1)
    # A binary that is whole but none of the driver's own: the driver refuses it.
    magic = b"bitfabric binary 1\n"
    (length,) = struct.unpack_from("<Q", good, len(magic))
    head = good[: len(magic) + 8 + length]
    entry.write_bytes(head + struct.pack("<Q", fnv(b"no binary")) + b"no binary")
    assert run() == (1, 0)
    assert run() == (0, 1)
    entry.unlink()
    (tmp_path / "opencl").rmdir()
    (tmp_path / "opencl").write_bytes(b"a file in the place of the folder")
    assert run() == (1, 0)


@pytest.mark.slow
def test_another_source_or_option_is_another_entry(tmp_path: Path) -> None:
    longer = "load(module_bytes({'scale': (SCALE + '\\n', SCALE_TYPES)}))"
    other = COUNT.replace("scale_module()", longer)
    assert in_process(COUNT, BITFABRIC_CACHE=str(tmp_path))["compiled"] == 1
    assert in_process(other, BITFABRIC_CACHE=str(tmp_path))["compiled"] == 1
    assert len(list((tmp_path / "opencl").iterdir())) == 2
