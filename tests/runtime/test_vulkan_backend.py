"""The Vulkan backend: devices, copies, views, memory. Any Vulkan driver will do (lavapipe)."""

from __future__ import annotations

import ctypes
import gc
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tvm
from bitfabric.compiler.spirv import codegen  # noqa: F401
from bitfabric.compiler.spirv.abilities import ADDRESS_KEY
from bitfabric.targets.ffi import tvm_ffi

from .row_sums import check, compiled
from .vulkan_tools import (
    GROUP,
    call,
    devices,
    download,
    empty,
    fails,
    in_process,
    load,
    memory,
    module_bytes,
    scale,
    scale_kernel,
    scale_module,
    upload,
    view,
    why_not,
)

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no Vulkan: {REASON}")


def test_devices_are_listed_processors_last_with_all_that_a_target_needs() -> None:
    found = devices()
    assert [each["index"] for each in found] == list(range(len(found)))
    ranks = [["gpu", "cpu"].index(each["kind"]) for each in found]
    assert ranks == sorted(ranks)
    for each in found:
        for key in ("name", "vendor", "version", "driver"):
            assert each[key]
        for key in ("max_threads", "local_memory", "max_buffer", "global_memory"):
            assert each[key] > 0
        assert each["push_constants"] >= 128
        for key in ("max_groups", "max_group_sizes"):
            assert len(each[key]) == 3
        assert each["alignment"] & (each["alignment"] - 1) == 0
        assert tuple(int(part) for part in each["vulkan"].split(".")) >= (1, 1, 0)
        least, most = each["subgroup_sizes"]
        assert least <= each["subgroup_size"] <= most
        assert "timelineSemaphore" in each["features"]
        assert isinstance(each["matrices"], list)
        for key in ("integrated", "integer_dot"):
            assert isinstance(each[key], bool)


def test_tvm_sees_the_same_device() -> None:
    attribute = tvm_ffi.get_global_func("runtime.GetDeviceAttr")
    first = devices()[0]
    assert attribute(7, 0, 0) == 1
    assert attribute(7, len(devices()), 0) == 0
    assert attribute(7, 0, 1) == first["max_threads"]
    assert attribute(7, 0, 5) == first["name"]
    assert attribute(7, 0, 7) is None
    assert attribute(7, 0, 14) == first["global_memory"]


@pytest.mark.parametrize("size", [1, 3, 63, 4097, 65535, 65536, 65537, 1 << 18, (5 << 20) + 1])
def test_bytes_come_back_as_they_went(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    assert np.array_equal(download(upload(data)), data)


def test_an_empty_tensor_can_be_copied() -> None:
    assert download(upload(np.empty((0, 4), "float32"))).shape == (0, 4)


@pytest.mark.parametrize("size", [17, 300_001])
def test_a_copy_does_not_see_what_the_host_writes_afterwards(size: int) -> None:
    """TVM's plain copy returns without a synchronisation."""
    copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo")
    host = np.empty(size, np.int32)
    tensors = []
    for turn in range(100 if size < 1000 else 4):
        host[:] = turn
        tensors.append(empty((size,), "int32"))
        copy(tvm_ffi.from_dlpack(host), tensors[-1])
    host[:] = -1
    for turn, tensor in enumerate(tensors):
        assert (download(tensor) == turn).all()


def test_commands_see_the_values_of_their_time() -> None:
    """What the host writes in place must not reach launches that came before it."""
    kernel = scale_module()["scale"]
    for size in (50, 40_000):  # below and above what is copied at once
        x, sums = upload(np.zeros(size, "float32")), []
        for turn in range(40):
            upload(np.full(size, turn, "float32"), x)
            sums.append(empty((size,)))
            scale(kernel, sums[-1], x, 2.0, 1, size)
        assert [float(download(each)[-1]) for each in sums] == [2 * turn + 1 for turn in range(40)]


def test_copies_within_the_device_and_back_to_the_host() -> None:
    data = np.random.default_rng(0).standard_normal((33, 7)).astype("float32")
    first, second = upload(data), empty((33, 7))
    copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo")
    copy(first, second)
    host = np.zeros((33, 7), "float32")
    copy(second, tvm_ffi.from_dlpack(host))
    assert np.array_equal(host, data)


def test_writes_that_do_not_wait_and_clearing() -> None:
    tensor = upload(np.ones(1000, "float32"))
    data = np.arange(100, dtype="float32")
    call("bitfabric.vulkan.clear", tensor)
    call("bitfabric.vulkan.write", tensor, 4 * 250, ctypes.c_void_p(data.ctypes.data), data.nbytes)
    expected = np.zeros(1000, "float32")
    expected[250:350] = data
    assert np.array_equal(download(tensor), expected)
    message = fails(
        call, "bitfabric.vulkan.write", tensor, 3996, ctypes.c_void_p(data.ctypes.data), 8
    )
    assert "8 bytes at byte 3996" in message
    assert "Vulkan tensor" in message


def test_clearing_an_odd_number_of_bytes_clears_no_more() -> None:
    step = devices()[0]["alignment"]
    whole = upload(np.ones(4 * step, np.uint8))
    call("bitfabric.vulkan.clear", view(whole, step, (7,), "uint8"))
    expected = np.ones(4 * step, np.uint8)
    expected[step : step + 7] = 0
    assert np.array_equal(download(whole), expected)
    call("bitfabric.vulkan.clear", view(whole, 2 * step, (3,), "uint8"))
    expected[2 * step : 2 * step + 3] = 0
    assert np.array_equal(download(whole), expected)


def test_views_are_tensors_of_their_own() -> None:
    step = devices()[0]["alignment"]
    count = step // 4
    whole = upload(np.arange(8 * count, dtype="float32"))
    parts = [view(whole, 2 * step, (2, count)), view(whole, 5 * step, (3 * count,))]
    assert np.array_equal(download(parts[0]).ravel(), np.arange(2 * count, 4 * count))
    inner = view(parts[1], step, (count,))
    scale(scale_module()["scale"], inner, view(whole, 0, (count,)), 10.0, 1, count)
    expected = np.arange(8 * count, dtype="float32")
    expected[6 * count : 7 * count] = expected[:count] * 10 + 1
    assert np.array_equal(download(whole), expected)
    del whole, parts
    gc.collect()
    upload(np.zeros(8 * count, "float32"))  # would take the memory if the view did not hold it
    assert np.array_equal(download(inner), expected[6 * count : 7 * count])
    assert download(view(inner, 0, (0,))).size == 0


def test_views_that_are_wrong() -> None:
    alignment = devices()[0]["alignment"]
    whole = empty((4 * alignment,), "uint8")
    message = fails(view, whole, alignment // 2, (1,), "uint8")
    assert f"must start at a multiple of {alignment} bytes, not at {alignment // 2}" in message
    for offset, count in ((4 * alignment, 1), (0, 4 * alignment + 1), (-alignment, 1)):
        assert "do not lie within" in fails(view, whole, offset, (count,), "uint8")


def test_memory_is_counted_reused_and_given_back() -> None:
    gc.collect()
    call("bitfabric.vulkan.release", 0)
    call("bitfabric.vulkan.reset_peak", 0)
    before = memory()
    assert before["peak"] == before["in_use"]
    large, small = empty((3 << 20,), "uint8"), [empty((100,), "uint8") for _ in range(1000)]
    now = memory()
    assert now["in_use"] - before["in_use"] == (3 << 20) + 100_000
    assert now["reserved"] >= now["in_use"]
    del large, small
    again = empty((3 << 20,), "uint8")
    held = memory()
    assert held["reserved"] <= now["reserved"]  # the freed block, not a new one
    assert held["peak"] == now["in_use"]
    del again
    call("bitfabric.vulkan.release", 0)
    call("bitfabric.vulkan.reset_peak", 0)
    assert memory() == before


def test_memory_that_is_freed_under_way_is_given_back_after_its_commands() -> None:
    kernel = scale_module()["scale"]
    x = upload(np.ones(1 << 20, "float32"))
    for turn in range(20):
        y = empty((1 << 20,))
        scale(kernel, y, x, 2.0, turn, 1 << 20)
        scale(kernel, x, y, 0.0, 1, 1 << 20)
        del y
        call("bitfabric.vulkan.release", 0)
    assert (download(x) == 1).all()


def test_two_threads_launch_the_same_kernel_and_others() -> None:
    kernel = scale_module()["scale"]
    wrong: list[int] = []

    def work(seed: int) -> None:
        x = np.random.default_rng(seed).standard_normal(500).astype("float32")
        a, b = upload(x), empty((500,))
        for turn in range(300):
            scale(kernel, b, a, 1.0 + seed, turn, 500)
            if turn % 50 == 49 and not np.allclose(download(b), x * (1 + seed) + turn, atol=1e-4):
                wrong.append(turn)
            if turn % 30 == 0:
                a = upload(x)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_timer_measures_the_device() -> None:
    kernel = scale_kernel()
    module = load(module_bytes([kernel]))
    x, y = upload(np.ones(1 << 22, "float32")), empty((1 << 22,))
    evaluate = tvm.get_global_func("runtime.RPCTimeEvaluator")
    evaluator = evaluate(module, "scale", 7, 0, 3, 1, 0, 100, 0, 1, 0, "")
    counts = (1 << 12, 1 << 22)
    seconds = [
        struct.unpack("@d", evaluator(y, x, 1.0, 0, n, n // GROUP, GROUP))[0] for n in counts
    ]
    start = time.perf_counter()
    scale(module["scale"], y, x, 1.0, 0, 1 << 22)
    download(y)
    assert 0 < seconds[0] * 4 < seconds[1] < (time.perf_counter() - start) * 4


@pytest.mark.parametrize("keys", [["vulkan", "gpu", ADDRESS_KEY], ["vulkan", "gpu"]])
@pytest.mark.slow
def test_the_virtual_machine_runs_a_compiled_module_without_leaking(
    keys: list[str], tmp_path: Path
) -> None:
    limits = {"max_threads_per_block": 256, "max_num_threads": 256}
    target = {"kind": "vulkan", "keys": keys, **limits, "max_shared_memory_per_block": 32768}
    compiled(target | {"supports_int64": True}).export_library(str(tmp_path / "module.so"))
    check(tmp_path / "module.so", 7, upload, download, memory)


STEPS = """
from pathlib import Path
kernel = scale_module(INTERFACE)["scale"]
x, y = upload(np.ones(1000, "float32")), empty((1000,))
def steps(count):
    for _ in range(count):
        between = empty((1000,))
        scale(kernel, between, x, 2.0, 1, 1000)
        scale(kernel, y, between, 1.0, 0, 1000)
        del between
    sync()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident, memory()
steps(2000)
print(json.dumps([steps(500), steps(10_000), float(download(y).sum())]))
"""


@pytest.mark.parametrize("interface", ["addresses", "spilled", "descriptors"])
def test_ten_thousand_steps_leak_nothing(interface: str) -> None:
    script = STEPS.replace("INTERFACE", repr(interface))
    (resident, counters), (later, counters_later), total = in_process(script)
    assert counters_later == counters
    assert later - resident < 2 << 20
    assert total == 3000


def test_an_allocation_that_is_too_large() -> None:
    message = fails(empty, (1 << 40,))
    assert message.startswith("Vulkan out of memory: device 0")
    assert "4398046511104 bytes (4.0 TiB)" in message
    assert "in use" in message
    assert "one buffer may have" in message
    assert empty((4,)) is not None


def test_a_device_that_is_not_there() -> None:
    count = len(devices())
    assert f"there is no device {count + 3}" in fails(call, "bitfabric.vulkan.memory", count + 3)


@pytest.mark.parametrize("library", ["/nonsense/libvulkan.so", "libm.so.6"])
def test_a_driver_that_is_missing(library: str) -> None:
    script = """
found = devices()
try:
    empty((4,))
except RuntimeError as error:
    message = str(error)
exists = call("runtime.GetDeviceAttr", 7, 0, 0)
print(json.dumps([found, message, exists]))
"""
    found, message, exists = in_process(script, FABRIC_VULKAN_LIB=library)
    assert library in found["error"]
    assert "Vulkan" in found["error"]
    assert message.startswith("Vulkan driver missing: ")
    assert found["error"] in message
    assert exists == 0


def test_a_machine_without_a_driver() -> None:
    """The loader is there, and finds nothing."""
    script = "print(json.dumps(devices()))"
    found = in_process(script, VK_DRIVER_FILES="/nonsense.json", VK_ICD_FILENAMES="/nonsense.json")
    assert "no driver is installed" in found["error"]
