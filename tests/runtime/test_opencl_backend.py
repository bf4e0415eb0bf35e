"""The OpenCL backend: devices, copies, views, kernels, memory. Any OpenCL driver will do (PoCL)."""

from __future__ import annotations

import ctypes
import gc
import json
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tvm
from bitfabric.targets.ffi import tvm_ffi
from tvm import relax

from .opencl_tools import (
    GROUP,
    call,
    download,
    empty,
    fails,
    load,
    memory,
    module_bytes,
    scale,
    scale_module,
    sync,
    text,
    upload,
    view,
    why_not,
)
from .row_sums import check, compiled

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no OpenCL: {REASON}")


def devices() -> list[dict]:
    return json.loads(call("bitfabric.opencl.devices"))


def test_devices_are_listed_gpus_first_with_all_that_a_target_needs() -> None:
    found = devices()
    assert [each["index"] for each in found] == list(range(len(found)))
    order = ["gpu", "accelerator", "cpu"]
    ranks = [order.index(each["type"]) for each in found]
    assert ranks == sorted(ranks)
    for each in found:
        for key in ("name", "vendor", "platform", "version", "driver"):
            assert each[key]
        for key in ("compute_units", "max_threads", "local_memory", "max_buffer", "global_memory"):
            assert each[key] > 0
        assert len(each["max_thread_dimensions"]) == 3
        assert each["alignment"] & (each["alignment"] - 1) == 0
        assert each["fp16"] == ("cl_khr_fp16" in each["extensions"])
        assert each["fp64"] == ("cl_khr_fp64" in each["extensions"])
        assert isinstance(each["subgroup"], int)
        for key in ("integer_dot", "unified_memory", "local_memory_emulated"):
            assert isinstance(each[key], bool)


def test_tvm_sees_the_same_device() -> None:
    attribute = tvm_ffi.get_global_func("runtime.GetDeviceAttr")
    first = devices()[0]
    assert attribute(4, 0, 0) == 1
    assert attribute(4, len(devices()), 0) == 0
    assert attribute(4, 0, 1) == first["max_threads"]
    assert attribute(4, 0, 5) == first["name"]
    assert attribute(4, 0, 14) == first["global_memory"]


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


def test_small_writes_beyond_the_staging_memory_keep_their_values() -> None:
    copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo")
    tensors = [empty((10_000,), "int32") for _ in range(200)]
    for turn, tensor in enumerate(tensors):
        copy(tvm_ffi.from_dlpack(np.full(10_000, turn, np.int32)), tensor)
    assert [int(download(tensor).sum()) for tensor in tensors] == [
        10_000 * turn for turn in range(200)
    ]


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
    call("bitfabric.opencl.clear", tensor)
    call("bitfabric.opencl.write", tensor, 4 * 250, ctypes.c_void_p(data.ctypes.data), data.nbytes)
    expected = np.zeros(1000, "float32")
    expected[250:350] = data
    assert np.array_equal(download(tensor), expected)
    odd = upload(np.ones(7, np.uint8))
    call("bitfabric.opencl.clear", odd)
    assert not download(odd).any()
    message = fails(
        call, "bitfabric.opencl.write", tensor, 3996, ctypes.c_void_p(data.ctypes.data), 8
    )
    assert "8 bytes at byte 3996" in message


def test_a_kernel_gets_its_scalars_and_its_work_size() -> None:
    module = scale_module()
    x = np.random.default_rng(1).standard_normal(1000).astype("float32")
    y = upload(np.zeros(1000, "float32"))
    scale(module["scale"], y, upload(x), 2.5, -3, 900)
    expected = np.where(np.arange(1000) < 900, x.astype("float64") * 2.5 - 3, 0)
    np.testing.assert_allclose(download(y), expected, rtol=1e-6, atol=1e-6)


def test_every_type_of_scalar_arrives() -> None:
    types = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32"]
    kinds = ["char", "uchar", "short", "ushort", "int", "uint", "long", "float"]
    values = [-5, 250, -30_000, 60_000, -(2**31), 2**32 - 1, -(2**62), 0.1]
    if devices()[0]["fp64"]:
        types, kinds, values = [*types, "float64"], [*kinds, "double"], [*values, 0.1]
    parameters = ", ".join(f"{kind} v{i}" for i, kind in enumerate(kinds))
    literals = [
        f"{value}f" if kind == "float" else value for kind, value in zip(kinds, values, strict=True)
    ]
    body = "\n".join(
        f"  out[{i}] = v{i} == ({kind})({literal});"
        for i, (kind, literal) in enumerate(zip(kinds, literals, strict=True))
    )
    source = f"__kernel void scalars(__global int* out, {parameters}) {{\n{body}\n}}\n"
    module = load(module_bytes({"scalars": (source, ["handle64", *types])}))
    out = upload(np.zeros(len(values), "int32"))
    module["scalars"](out, *values, 1, 1)
    assert download(out).tolist() == [1] * len(values)


def test_arguments_that_change_and_buffers_that_are_used_again() -> None:
    """What is not set again must not be stale: other scalars, other buffers at the same address."""
    kernel = scale_module()["scale"]
    for turn in range(200):
        size = 100_000 if turn % 3 else 70
        x = upload(np.full(size, turn, "float32"))
        y = empty((size,))
        scale(kernel, y, x, turn % 5, turn % 7, size)
        assert (download(y) == turn * (turn % 5) + turn % 7).all()
        if turn % 20 == 0:
            del x, y
            call("bitfabric.opencl.release", 0)


def test_a_launch_of_no_groups_does_nothing() -> None:
    y = upload(np.ones(4, "float32"))
    scale_module()["scale"](y, y, 5.0, 5, 4, 0, GROUP)
    assert download(y).tolist() == [1, 1, 1, 1]


def test_views_are_tensors_of_their_own() -> None:
    step = max(devices()[0]["alignment"], 4)
    count = step // 4
    whole = upload(np.arange(8 * count, dtype="float32"))
    parts = [view(whole, 2 * step, (2, count)), view(whole, 5 * step, (3 * count,))]
    assert np.array_equal(download(parts[0]).ravel(), np.arange(2 * count, 4 * count))
    inner = view(parts[1], step, (count,))
    kernel = scale_module()["scale"]
    scale(kernel, inner, view(whole, 0, (count,)), 10.0, 1, count)
    expected = np.arange(8 * count, dtype="float32")
    expected[6 * count : 7 * count] = expected[:count] * 10 + 1
    assert np.array_equal(download(whole), expected)
    del whole, parts
    gc.collect()
    upload(np.zeros(8 * count, "float32"))  # would take the memory if the view did not hold it
    assert np.array_equal(download(inner), expected[6 * count : 7 * count])
    assert download(view(inner, 0, (0,))).size == 0


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

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_is_counted_reused_and_given_back() -> None:
    gc.collect()
    call("bitfabric.opencl.release", 0)
    call("bitfabric.opencl.reset_peak", 0)
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
    call("bitfabric.opencl.release", 0)
    call("bitfabric.opencl.reset_peak", 0)
    assert memory() == before


def compiled_row_sums() -> relax.VMExecutable:
    return compiled(
        {"kind": "opencl", "max_threads_per_block": 256, "max_shared_memory_per_block": 32768}
    )


def device_code(executable: relax.VMExecutable, path: Path) -> bytes:
    """Return the device module's bytes as they lie in the library that is exported."""
    executable.export_library(str(path))
    module = executable.mod
    while module.kind != "opencl":
        module = module.imports[0]
    library = path.read_bytes()
    code = text(module.inspect_source())
    end = library.index(code) + len(code)
    return library[library.rindex(text("cl") + struct.pack("<Q", 2), 0, end) : end]


def test_a_module_made_in_this_process_is_written_as_tvm_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = device_code(compiled_row_sums(), tmp_path / "ours.so")
    monkeypatch.setenv("TVM_COMPILE_FORCE_FALLBACK", "1")
    assert ours == device_code(compiled_row_sums(), tmp_path / "tvm.so")


def test_the_virtual_machine_runs_a_compiled_module_without_leaking(tmp_path: Path) -> None:
    compiled_row_sums().export_library(str(tmp_path / "module.so"))
    check(tmp_path / "module.so", 4, upload, download, memory)


def test_the_timer_measures_the_device() -> None:
    source = """
    __kernel void spin(__global float* y, int turns) {
      float v = y[0];
      for (int i = 0; i < turns; ++i) v = v * 0.999f + 0.5f;
      y[0] = v;
    }
    """
    module = load(module_bytes({"spin": (source, ["handle64", "int32"])}))
    evaluate = tvm.get_global_func("runtime.RPCTimeEvaluator")
    evaluator = evaluate(module, "spin", 4, 0, 3, 1, 0, 100, 0, 1, 0, "")
    y = upload(np.ones(1, "float32"))
    seconds = [struct.unpack("@d", evaluator(y, turns, 1, 1))[0] for turns in (20_000, 2_000_000)]
    start = time.perf_counter()
    module["spin"](y, 2_000_000, 1, 1)
    sync()
    wall = time.perf_counter() - start
    assert 0 < seconds[0] * 10 < seconds[1] < wall * 3
