"""Launching kernels on the Vulkan backend: arguments, grids, interfaces, and recorded calls."""

from __future__ import annotations

import gc
import json
from dataclasses import replace

import numpy as np
import pytest

from .vulkan_tools import (
    GROUP,
    call,
    devices,
    download,
    empty,
    fails,
    load,
    module_bytes,
    scale,
    scale_kernel,
    scale_module,
    sync,
    upload,
    why_not,
)

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no Vulkan: {REASON}")
INTERFACES = ["addresses", "spilled", "descriptors"]


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_kernel_gets_its_arguments_and_its_work_size(interface: str) -> None:
    x = np.random.default_rng(1).standard_normal(1000).astype("float32")
    y = upload(np.zeros(1000, "float32"))
    scale(scale_module(interface)["scale"], y, upload(x), 2.5, -3, 900)
    expected = np.where(np.arange(1000) < 900, x.astype("float64") * 2.5 - 3, 0)
    np.testing.assert_allclose(download(y), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("interface", INTERFACES)
def test_arguments_that_change_and_buffers_that_are_used_again(interface: str) -> None:
    kernel = scale_module(interface)["scale"]
    for turn in range(200):
        size = 100_000 if turn % 3 else 70
        x = upload(np.full(size, turn, "float32"))
        y = empty((size,))
        scale(kernel, y, x, turn % 5, turn % 7, size)
        assert (download(y) == turn * (turn % 5) + turn % 7).all()
        if turn % 20 == 0:
            del x, y
            call("bitfabric.vulkan.release", 0)


@pytest.mark.parametrize("interface", INTERFACES)
def test_many_launches_that_depend_on_each_other(interface: str) -> None:
    """More than a batch holds, with more blocks and descriptors than one takes."""
    kernel = scale_module(interface)["scale"]
    a, b = upload(np.zeros(100, "float32")), empty((100,))
    for _ in range(5000):
        scale(kernel, b, a, 1.0, 1, 100)
        a, b = b, a
    assert (download(a) == 5000).all()


def test_one_kernel_for_groups_of_several_sizes() -> None:
    kernel = scale_module()["scale"]
    x, y = upload(np.arange(1000, dtype="float32")), empty((1000,))
    for threads in (1, 8, 64, 128, 8):
        kernel(y, x, 2.0, threads, 1000, -(-1000 // threads), threads)
        assert np.array_equal(download(y), np.arange(1000, dtype="float32") * 2 + threads)


def test_a_launch_of_no_groups_does_nothing() -> None:
    y = upload(np.ones(4, "float32"))
    scale_module()["scale"](y, y, 5.0, 5, 4, 0, GROUP)
    assert download(y).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("extra", [1, 4000])
def test_more_groups_than_a_device_takes_are_folded(interface: str, extra: int) -> None:
    groups = devices()[0]["max_groups"][0] + extra
    if groups > 1 << 20:
        pytest.skip(f"the device takes {groups - extra} groups")
    size = groups * 8 - 3
    x, y = upload(np.arange(size, dtype="float32")), upload(np.zeros(size, "float32"))
    scale_module(interface)["scale"](y, x, 2.0, 1, size, groups, 8)
    assert np.array_equal(download(y), np.arange(size, dtype="float32") * 2 + 1)


def test_a_grid_of_two_axes_is_folded() -> None:
    groups = devices()[0]["max_groups"][1] + 5
    if groups > 1 << 20:
        pytest.skip(f"the device takes {groups - 5} groups")
    # Folded or not, the kernel counts groups along x first.
    module = load(module_bytes([scale_kernel()], tags=["blockIdx.x", "blockIdx.y", "threadIdx.x"]))
    size = groups * 3
    x, y = upload(np.arange(size, dtype="float32")), upload(np.zeros(size, "float32"))
    module["scale"](y, x, 3.0, 1, size, 3, groups, 1)
    assert np.array_equal(download(y), np.arange(size, dtype="float32") * 3 + 1)


def test_a_grid_that_can_not_be_folded() -> None:
    most = devices()[0]["max_groups"][0]
    if most > 1 << 30:
        pytest.skip("the device takes any grid")
    y = upload(np.zeros(4, "float32"))
    plain = load(module_bytes([replace(scale_kernel(), foldable=False)]))
    message = fails(plain["scale"], y, y, 1.0, 1, 4, most + 1, GROUP)
    assert f"with {most + 1}x1x1 groups of 64x1x1 threads on device 0" in message
    assert f"{most}x" in message
    message = fails(scale_module()["scale"], y, y, 1.0, 1, 4, 1 << 31, GROUP)
    assert f"with {1 << 31}x1x1 groups" in message


def test_launches_that_are_wrong() -> None:
    kernel, y = scale_module()["scale"], upload(np.zeros(4, "float32"))
    assert "takes 5 arguments and 2 launch extents, not 3 values" in fails(kernel, y, y, 1.0)
    message = fails(kernel, y, y, 1.0, 1, 4, 1, 1 << 20)
    assert message.startswith("Vulkan error: Launching kernel scale with 1x1x1 groups of 1048576x")
    assert "may have" in message
    host = np.zeros(4, "float32")
    assert "takes device memory as argument 0" in fails(kernel, host, y, 1.0, 1, 4, 1, GROUP)
    kernel(y, y, 1.0, 1, 4, 1, GROUP)  # and after all that, it works
    assert (download(y) == 1).all()


def recorded(step: object) -> tuple[object, object]:
    """Record a function; return its replay and what it returned."""
    results: list = []
    replay = call("bitfabric.vulkan.recorder", 0)(step, results.append)
    return replay, results[0]


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_replay_gives_the_bits_of_the_call(interface: str) -> None:
    kernel = scale_module(interface)["scale"]
    x, total = empty((1000,)), upload(np.zeros(1000, "float32"))

    def step() -> object:
        between, y = empty((1000,)), empty((1000,))
        for turn in range(100):  # several command buffers
            scale(kernel, between, x, 1.1, turn, 1000)
            scale(kernel, y, between, 0.9, -turn, 1000)
            scale(kernel, total, total, 1.0, 1, 1000)
        return y

    values = np.random.default_rng(2).standard_normal((4, 1000)).astype("float32")
    expected = []
    for value in values:
        upload(value, x)
        expected.append(download(step()))
    upload(values[0], x)
    replay, y = recorded(step)
    assert np.array_equal(download(y), expected[0])
    for value, one in zip(values, expected, strict=True):
        upload(value, x)
        replay(False)
        assert np.array_equal(download(y), one)
    assert (download(total) == 900).all()


def test_replays_run_in_order_with_launches_and_writes_between() -> None:
    kernel = scale_module()["scale"]
    x = upload(np.ones(100, "float32"))
    replay, _ = recorded(lambda: scale(kernel, x, x, 2.0, 0, 100))
    assert (download(x) == 2).all()
    for _ in range(50):
        upload(np.full(100, 3, "float32"), x)
        replay(False)
        scale(kernel, x, x, 1.0, 1, 100)
        replay(False)
        assert (download(x) == 14).all()


def test_what_a_recording_keeps_is_nobody_elses() -> None:
    kernel = scale_module()["scale"]
    x = upload(np.arange(1000, dtype="float32"))

    def step() -> object:
        between, y = empty((1000,)), empty((1000,))
        scale(kernel, between, x, 2.0, 0, 1000)
        scale(kernel, y, between, 1.0, 1, 1000)
        return y

    replay, y = recorded(step)
    others = [upload(np.full(1000, 7, "float32")) for _ in range(50)]
    replay(False)
    assert np.array_equal(download(y), np.arange(1000) * 2 + 1)
    assert all((download(other) == 7).all() for other in others)


def test_a_recording_outlives_its_module_and_a_profile_names_its_kernels() -> None:
    x, y = upload(np.ones(4096, "float32")), empty((4096,))

    def recorded_with_a_module_of_its_own() -> object:
        module = load(module_bytes([scale_kernel(), scale_kernel(name="other")]))
        one, other = module["scale"], module["other"]

        def step() -> None:
            for _ in range(300):  # more than a command buffer of a recording has
                scale(one, y, x, 2.0, 0, 4096)
            scale(other, x, y, 1.0, 0, 4096)

        return recorded(step)[0]

    replay = recorded_with_a_module_of_its_own()
    gc.collect()
    found = json.loads(replay(True))
    assert [name for name, _ in found] == ["scale"] * 300 + ["other"]
    assert all(nanoseconds > 0 for _, nanoseconds in found)
    assert (download(x) == 4).all()
    replay(False)
    assert (download(x) == 8).all()


def test_a_call_that_does_more_than_launch_is_not_recorded() -> None:
    kernel = scale_module()["scale"]
    x = upload(np.ones(100, "float32"))
    for other in (
        lambda: upload(np.ones(100, "float32"), x),
        lambda: download(x),
        lambda: call("bitfabric.vulkan.clear", x),
    ):

        def step(also: object = other) -> None:
            scale(kernel, x, x, 2.0, 0, 100)
            also()

        assert recorded(step)[0] is None

    def broken() -> None:
        raise ValueError("no such step")

    assert "no such step" in fails(recorded, broken)
    assert recorded(lambda: scale(kernel, x, x, 2.0, 0, 100))[0] is not None


def test_recordings_come_and_go_while_their_commands_are_under_way() -> None:
    kernel = scale_module("spilled")["scale"]
    x = upload(np.zeros(100, "float32"))
    for _ in range(100):
        replay, _ = recorded(lambda: scale(kernel, x, x, 1.0, 1, 100))
        replay(False)
        del replay
    sync()
    assert (download(x) == 200).all()
