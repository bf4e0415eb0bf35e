"""What the Vulkan backend says when something is wrong, with real faults and with injected ones.

The injected ones come from `faulty_vulkan.cc`, which stands between the backend and the driver. It
also makes a device with memory of its own out of one that shares the host's.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from .vulkan_tools import (
    GROUP,
    container,
    devices,
    fails,
    in_process,
    load,
    module_bytes,
    scale_kernel,
    upload,
    why_not,
)

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no Vulkan: {REASON}")
ROOT = Path(__file__).parents[2]
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


def test_bytes_that_are_no_module() -> None:
    kernel = scale_kernel()
    data = module_bytes([kernel])
    for end in range(0, len(data), 97):
        assert "truncated" in fails(load, data[:end])
    assert "too many" in fails(load, data + b"x")
    assert "format cl" in fails(load, module_bytes([], form="cl"))


def test_code_that_is_damaged() -> None:
    kernel = scale_kernel()
    code = container([kernel])
    for end in range(0, len(code), 97):
        assert "truncated" in fails(load, module_bytes([kernel], code=code[:end]))
    assert "too many" in fails(load, module_bytes([kernel], code=code + b"x"))
    other = container([kernel], form="bitfabric.spirv.9")
    assert "format bitfabric.spirv.9" in fails(load, module_bytes([kernel], code=other))
    damaged = (
        replace(kernel, spirv=kernel.spirv[:-1]),
        replace(kernel, spirv=b"\x00" * 400),
        replace(kernel, spirv=kernel.spirv[:40] + b"\xff" * 40 + kernel.spirv[80:]),
        replace(kernel, spirv=b""),
        replace(kernel, block=16),
        replace(kernel, block=1 << 20),
        replace(kernel, grid=40),
        replace(kernel, descriptors=True, spilled=True),
        replace(kernel, arguments=(("handle64", 9, 0), *kernel.arguments[1:])),
    )
    for each in damaged:
        assert "Kernel scale of the Vulkan module is damaged" in fails(load, module_bytes([each]))


def test_kernels_that_do_not_fit_their_records() -> None:
    kernel = scale_kernel()
    code = container([kernel])
    fewer = replace(kernel, arguments=kernel.arguments[:-1])
    module = load(module_bytes([fewer], code=code))
    assert "is damaged" in fails(lambda: module["scale"])
    wider = replace(kernel, arguments=(*kernel.arguments[:-1], ("handle64", 0, 24)))
    module = load(module_bytes([wider], code=code))
    assert "is damaged" in fails(lambda: module["scale"])
    renamed = load(module_bytes([replace(kernel, name="other")], code=code))
    assert "lists kernel other but has no code of it" in fails(lambda: renamed["other"])
    dynamic = load(module_bytes([kernel], tags=["tirx.use_dyn_shared_memory"]))
    assert "launch parameter tirx.use_dyn_shared_memory" in fails(lambda: dynamic["scale"])
    with pytest.raises(AttributeError):
        _ = module["absent"]


def test_a_module_that_needs_what_the_device_lacks() -> None:
    good, y = scale_kernel(), upload(np.zeros(4, "float32"))
    name = devices()[0]["name"]
    start = f"Vulkan error: Kernel more can't run on device 0 ({name}): the device "
    cases = {
        "does not have the feature noSuchFeature, which it needs": {
            "features": ("shaderInt64", "noSuchFeature")
        },
        "and it needs 1.9": {"vulkan": 1 << 22 | 9 << 12},
        "of shared memory, and it needs 1073741824 bytes (1.0 GiB)": {"shared": 1 << 30},
        "can't run subgroups of 4096 threads": {"subgroup": 4096},
        "bytes of push constants, and it needs 4096": {"block": 4096},
    }
    for words, change in cases.items():
        # One kernel that the device can't run is enough: a step would stop in its middle.
        module = load(module_bytes([good, replace(good, name="more", **change)]))
        message = fails(module["scale"], y, y, 1.0, 1, 4, 1, GROUP)
        assert message.startswith(start)
        assert words in message


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a driver whose calls fail on demand."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("the faulty driver needs a C++ compiler")
    library = tmp_path_factory.mktemp("driver") / "libfaulty.so"
    source, include = Path(__file__).parent / "faulty_vulkan.cc", ROOT / "runtime" / "native"
    command = [compiler, "-std=c++17", "-shared", "-fPIC", f"-I{include}", source, "-o", library]
    subprocess.run([*command, "-ldl"], check=True)
    return str(library)


@pytest.mark.parametrize("status", [-1, -2])
def test_a_launch_without_memory(faulty: str, status: int) -> None:
    script = (
        LAUNCH
        + """
kept = empty((1 << 22,), "uint8"); del kept
print(json.dumps([attempt(launch), attempt(launch)]))
"""
    )
    for message in in_process(script, FABRIC_VULKAN_LIB=faulty, FAULT_SUBMIT=str(status)):
        assert message.startswith("Vulkan out of memory: Reading 32 bytes")
        assert f"({status})" in message


def test_a_launch_without_memory_goes_through_once_what_is_kept_is_given_back(faulty: str) -> None:
    script = (
        LAUNCH
        + """
kept = empty((1 << 22,), "uint8"); del kept
before = memory()["reserved"]
print(json.dumps([attempt(launch), before - memory()["reserved"]]))
"""
    )
    total, given_back = in_process(script, FABRIC_VULKAN_LIB=faulty, FAULT_SUBMIT_ONCE="-2")
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
        script, FABRIC_VULKAN_LIB=faulty, FAULT_MEMORY=str(8 << 20), FAULT_DISCRETE="1"
    )
    assert not failed
    assert message.startswith("Vulkan out of memory: device 0")
    assert "7340032 bytes (7.0 MiB) are in use" in message
    assert reserved == 7 << 20


def test_an_allocation_waits_for_what_was_freed_under_way(faulty: str) -> None:
    """The pool keeps no more than a share of the device, and lets the rest go at once."""
    script = """
kernel = scale_module()["scale"]
small = upload(np.ones(8, "float32"))
for turn in range(3):
    large = empty((75 << 20,))
    scale(kernel, large, small, 1.0, turn, 8)
    scale(kernel, small, large, 1.0, 0, 8)
    del large
print(json.dumps(float(download(small).sum())))
"""
    variables = {"FAULT_MEMORY": str(400 << 20), "FAULT_DISCRETE": "1"}
    assert in_process(script, FABRIC_VULKAN_LIB=faulty, **variables) == 8 * 4


def test_allocations_are_counted_where_a_device_limits_them(faulty: str) -> None:
    """64 are left to the queue; small tensors share theirs, and what is kept makes room."""
    script = """
small = [empty((100,), "uint8") for _ in range(1000)]
def fill():
    held = []
    while len(held) < 1000:
        try:
            held.append(empty((1 << 20,), "uint8"))
        except RuntimeError as error:
            return held, str(error)
large, message = fill()
count = len(large)
del large
again, _ = fill()
print(json.dumps([count, len(again), message]))
"""
    count, again, message = in_process(script, FABRIC_VULKAN_LIB=faulty, FAULT_ALLOCATIONS="128")
    assert 128 - 64 - 8 < count < 128 - 64
    assert again == count
    assert message.startswith("Vulkan out of memory")


@pytest.mark.parametrize("fault", ["FAULT_SUBMIT", "FAULT_WAIT"])
def test_a_device_that_is_lost(faulty: str, fault: str, tmp_path: Path) -> None:
    script = (
        LAUNCH
        + """
assert launch() == 24.0
scale(module["scale"], y, y, 1.0, 3, 8)
open(os.environ["FAULT_WHEN"], "w").close()
first = attempt(sync)
print(json.dumps([first, attempt(launch)]))
"""
    )
    variables = {fault: "-4", "FAULT_WHEN": str(tmp_path / "now")}
    for message in in_process(script, FABRIC_VULKAN_LIB=faulty, **variables):
        assert message.startswith("Vulkan device lost: ")
        assert "device 0" in message
        assert "VK_ERROR_DEVICE_LOST (-4)" in message


HIDDEN = {
    "bufferDeviceAddress": "1000257000:0",
    "shaderInt64": "1000059000:40",
}


@pytest.mark.parametrize(("feature", "place"), HIDDEN.items())
def test_a_feature_that_is_not_there(faulty: str, feature: str, place: str) -> None:
    script = LAUNCH + "print(json.dumps([devices()[0]['features'], attempt(launch)]))"
    found, message = in_process(script, FABRIC_VULKAN_LIB=faulty, FAULT_HIDE=place)
    assert feature not in found
    assert message.startswith("Vulkan error: Kernel scale can't run on device 0")
    assert f"does not have the feature {feature}, which it needs" in message


def test_a_device_without_addresses_takes_descriptors(faulty: str) -> None:
    script = LAUNCH.replace("scale_module()", "scale_module('descriptors')")
    script += "print(json.dumps(attempt(launch)))"
    place = HIDDEN["bufferDeviceAddress"]
    assert in_process(script, FABRIC_VULKAN_LIB=faulty, FAULT_HIDE=place) == 24.0


def test_devices_that_can_not_be_used_are_not_listed(faulty: str) -> None:
    script = "print(json.dumps(devices()))"
    hidden = in_process(script, FABRIC_VULKAN_LIB=faulty, FAULT_HIDE="1000207000:0")
    assert "timeline semaphores" in hidden["error"]


def test_a_descriptor_names_no_more_than_its_range(faulty: str) -> None:
    script = """
kernel = scale_module("descriptors")["scale"]
x, y = upload(np.ones(1 << 18, "float32")), empty((1 << 18,))
try:
    scale(kernel, y, x, 1.0, 0, 1 << 18)
except RuntimeError as error:
    message = str(error)
half = view(x, 1 << 19, (1 << 17,))
scale(kernel, half, half, 2.0, 1, 1 << 17)
print(json.dumps([devices()[0]["max_buffer"], message, float(download(half).sum())]))
"""
    most, message, total = in_process(script, FABRIC_VULKAN_LIB=faulty, FAULT_RANGE=str(1 << 19))
    assert most == 1 << 19
    assert "Kernel scale takes 1048576 bytes (1.0 MiB) as argument 0" in message
    assert "at most 524288 bytes (512.0 KiB)" in message
    assert total == 3 * (1 << 17)


def test_a_small_grid_is_folded_where_a_device_takes_a_smaller_one(faulty: str) -> None:
    script = """
kernel = scale_module()["scale"]
x, y = upload(np.arange(6000, dtype="float32")), empty((6000,))
found = []
for groups in (16, 17, 250, 4096):
    upload(np.zeros(6000, "float32"), y)
    kernel(y, x, 2.0, 0, 6000, groups, 1)
    expected = np.where(np.arange(6000) < groups, np.arange(6000) * 2, 0)
    found.append(bool(np.array_equal(download(y), expected)))
try:
    kernel(y, x, 2.0, 0, 6000, 4097, 1)
except RuntimeError as error:
    print(json.dumps([found, str(error)]))
"""
    found, message = in_process(script, FABRIC_VULKAN_LIB=faulty, FAULT_GROUPS="16")
    assert found == [True] * 4
    assert "4097x1x1 groups" in message
    assert "16x16x16 groups are the most there" in message


DISCRETE = """
assert not devices()[0]["integrated"]
kernel = scale_module(INTERFACE)["scale"]
rng = np.random.default_rng(0)
for size in (1, 3, 65535, 65537, (1 << 20) + 1, (9 << 20) + 3):
    data = rng.integers(0, 256, size, dtype=np.uint8)
    tensor = upload(data)
    assert np.array_equal(download(tensor), data), size
    call("bitfabric.vulkan.clear", tensor)
    assert not download(tensor).any()
x = empty((100_000,))
y = [empty((100_000,)) for _ in range(10)]
for turn in range(10):
    upload(np.full(100_000, turn, "float32"), x)
    scale(kernel, y[turn], x, 2.0, 1, 100_000)
assert [float(download(each)[-1]) for each in y] == [2.0 * turn + 1 for turn in range(10)]
results = []
def step():
    between, last = empty((100_000,)), empty((100_000,))
    scale(kernel, between, x, 2.0, 0, 100_000)
    scale(kernel, last, between, 1.0, 1, 100_000)
    return last
replay = call("bitfabric.vulkan.recorder", 0)(step, results.append)
for turn in range(20):
    upload(np.full(100_000, turn, "float32"), x)
    replay(False)
    assert (download(results[0]) == 2 * turn + 1).all()
print(json.dumps("well"))
"""


@pytest.mark.parametrize("interface", ["addresses", "spilled", "descriptors"])
def test_a_device_with_memory_of_its_own(faulty: str, interface: str) -> None:
    script = DISCRETE.replace("INTERFACE", repr(interface))
    assert in_process(script, FABRIC_VULKAN_LIB=faulty, FAULT_DISCRETE="1") == "well"


TWO = """
def there(index, array):
    tensor = call("runtime.TVMTensorAllocWithScope", tvm_ffi.Shape(array.shape),
                  tvm_ffi.dtype("float32"), tvm_ffi.Device("vulkan", index), None)
    return upload(array, tensor)
kernel = scale_module()["scale"]
data = np.arange(3 << 20, dtype="float32")
first, second = there(0, data), there(1, np.zeros_like(data))
call("runtime.TVMTensorCopyFromTo", first, second)
moved = bool(np.array_equal(download(second), data))
call("__tvm_set_device", 7, 1)
scale(kernel, second, second, 2.0, 1, data.size)
try:
    scale(kernel, second, first, 2.0, 1, data.size)
except RuntimeError as error:
    message = str(error)
call("__tvm_set_device", 7, 0)
scale(kernel, first, first, 3.0, 0, data.size)
right = np.array_equal(download(second), data * 2 + 1) and np.array_equal(download(first), data * 3)
counts = [json.loads(call("bitfabric.vulkan.memory", index))["in_use"] for index in (0, 1)]
print(json.dumps([moved, message, bool(right), counts]))
"""


def test_two_devices_have_memory_and_kernels_of_their_own(faulty: str) -> None:
    moved, message, right, counts = in_process(TWO, FABRIC_VULKAN_LIB=faulty, FAULT_TWICE="1")
    assert moved
    assert right
    assert "Kernel scale runs on device 1" in message
    assert "its argument 1 lies on device 0" in message
    assert counts == [12 << 20, 12 << 20]


OLDER = (
    LAUNCH
    + """
from dataclasses import replace
later = attempt(launch)
kernel = replace(scale_kernel("descriptors"), vulkan=V1_1)
module = load(module_bytes([kernel]))
print(json.dumps([devices()[0], later, attempt(launch)]))
"""
)


def test_a_device_of_an_older_version(faulty: str) -> None:
    """What later versions took in comes by extensions there."""
    found, message, total = in_process(OLDER, FABRIC_VULKAN_LIB=faulty, FAULT_VERSION="1")
    assert found["vulkan"].startswith("1.1.")
    assert {"bufferDeviceAddress", "shaderFloat16", "timelineSemaphore"} <= set(found["features"])
    assert "the device has Vulkan 1.1, and it needs 1.2" in message
    assert total == 24.0


COUNT = """
kernel = scale_module()["scale"]
x, y = upload(np.ones(8, "float32")), empty((8,))
for threads in (8, 4):
    kernel(y, x, 1.0, 2, 8, 8 // threads, threads)
    assert (download(y) == 3).all()
print(call("bitfabric.vulkan.programs"))
"""


@pytest.mark.slow
def test_compiled_kernels_are_kept_on_disk_and_damage_is_noticed(tmp_path: Path) -> None:
    def run() -> tuple[int, int]:
        counts = in_process(COUNT, BITFABRIC_CACHE=str(tmp_path))
        return counts["compiled"], counts["loaded"]

    assert run() == (2, 0)
    assert run() == (0, 2)
    entries = sorted((tmp_path / "vulkan").iterdir())
    assert len(entries) == 2
    good = entries[0].read_bytes()
    damaged = bytearray(good)
    damaged[-10] ^= 1
    for bad in (bytes(damaged), good[: len(good) // 2], b"", b"nonsense" * 1000):
        entries[0].write_bytes(bad)
        assert run() == (1, 1)
        assert run() == (0, 2)
    # A binary that is whole, but another driver's.
    magic = b"bitfabric binary 1\n"
    head = good[: len(magic) + 8 + int.from_bytes(good[len(magic) :][:8], "little")]
    binary = bytearray(good[len(head) + 8 :])
    binary[8] ^= 1  # the maker's number in the header
    checksum = fnv(bytes(binary)).to_bytes(8, "little")
    entries[0].write_bytes(head + checksum + bytes(binary))
    assert run() == (1, 1)
    assert run() == (0, 2)


def fnv(data: bytes) -> int:
    """The 64-bit FNV-1a hash."""
    found = 14695981039346656037
    for byte in data:
        found = (found ^ byte) * 1099511628211 % 2**64
    return found


@pytest.mark.slow
def test_another_code_or_interface_is_another_entry(tmp_path: Path) -> None:
    script = COUNT.replace("scale_module()", "scale_module('spilled')")
    for each in (COUNT, script):
        assert in_process(each, BITFABRIC_CACHE=str(tmp_path))["compiled"] == 2
    assert len(list((tmp_path / "vulkan").iterdir())) == 4
