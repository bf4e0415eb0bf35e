"""Kernels measured on devices elsewhere, through lost connections, frozen and busy devices."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from bitfabric.compiler.tuning.measure import Measured, Measurer
from bitfabric.compiler.tuning.pool import Pool
from bitfabric.runtime.remote import Address, RemoteError
from bitfabric.runtime.remote.kernels import RemoteKernelBench, describe, devices
from bitfabric.targets import host_cpu, processor

from ..compiler.test_tuning_isolation import ARGUMENTS, kernel, twice
from .remote_tools import PATIENCE, Device, TvmTracker, free_port

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.name != "posix", reason="serving needs Android, Linux or macOS"),
]
LIMIT = 20.0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """A kernel that doubles, as a device gets it."""
    tvm = pytest.importorskip("tvm")
    path = tmp_path_factory.mktemp("kernel") / "kernel.so"
    module = tvm.IRModule({"main": kernel(twice).with_attr("global_symbol", "main")})
    tvm.compile(module, target="llvm").export_library(str(path))
    return np.fromfile(path, np.uint8)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[TvmTracker, list[Device]]]:
    """A tracker with two devices of one key."""
    with TvmTracker() as tracker:
        place = ("--tracker", f"127.0.0.1:{tracker.port}")
        with (
            Device(tmp_path / "a", "--name", "first", *place) as first,
            Device(tmp_path / "b", "--name", "second", *place) as second,
        ):
            address = tracker.address("k")
            for _ in range(100):
                if devices(address) == 2:
                    break
                time.sleep(0.1)
            yield tracker, [first, second]


def test_a_device_says_what_it_is(tmp_path: Path) -> None:
    with Device(tmp_path) as device:
        said = describe(device.address, "cpu", print)
        assert said["target"] == host_cpu().name
        assert (said["name"], said["detail"], said["threads"]) == processor()
        assert devices(device.address) == 1


def test_a_server_that_dies_and_comes_back_costs_a_candidate_nothing(
    tmp_path: Path, library: np.ndarray
) -> None:
    port, told = free_port(), []
    with Device(tmp_path, port=port) as device:
        bench = RemoteKernelBench("cpu", device.address, told.append, PATIENCE)
        assert bench.take(library, ARGUMENTS, LIMIT)["seconds"] > 0
    with Device(tmp_path, port=port):
        found = bench.compare(library, 0.05, 1, LIMIT)
        assert found["ratio"] > 0, found
        bench.close()
    assert any("closed the connection" in text for text in told), told


@pytest.mark.slow
def test_a_frozen_device_is_skipped_with_its_name(
    pair: tuple[TvmTracker, list[Device]], library: np.ndarray
) -> None:
    tracker, served = pair
    told: list[str] = []
    bench = RemoteKernelBench("cpu", tracker.address("k"), told.append, PATIENCE)
    bench.take(library, ARGUMENTS, LIMIT)
    (frozen,) = (device for device in served if device.children())
    frozen.signal(signal.SIGSTOP)
    found = bench.compare(library, 0.05, 1, LIMIT)
    assert "ratio" in found
    name = "First" if frozen is served[0] else "Second"
    assert any(text.startswith(name) and text.endswith("It is skipped.") for text in told), told
    bench.close()


def test_no_device_at_all_is_an_error(library: np.ndarray) -> None:
    nowhere = Address("127.0.0.1", free_port(), "k")
    with pytest.raises(RemoteError, match="Nothing listens"):
        RemoteKernelBench("cpu", nowhere, print, PATIENCE).take(library, ARGUMENTS, LIMIT)
    assert devices(nowhere) == 1


@pytest.mark.slow
def test_candidates_run_on_all_devices_of_a_tracker_at_once(
    pair: tuple[TvmTracker, list[Device]],
) -> None:
    tracker, served = pair
    with shared(tracker, []) as pool:
        assert all(device.children() for device in served)
        found = list(pool.compare_each([kernel(twice)] * 4, 0.05))
        assert all(isinstance(each, Measured) for each in found), found
        assert isinstance(pool.compare(kernel(twice), 0.05, 2), Measured)


@pytest.mark.slow
def test_what_a_lost_device_had_to_do_is_done_by_another(
    pair: tuple[TvmTracker, list[Device]],
) -> None:
    tracker, served = pair
    told: list[str] = []
    with shared(tracker, told) as pool:
        served[0].kill()
        found = list(pool.compare_each([kernel(twice)] * 3, 0.05))
        assert all(isinstance(each, Measured) for each in found), found
        assert pool.size == 1
    assert any("Going on with 1 device" in text for text in told), told


@contextmanager
def shared(tracker: TvmTracker, told: list[str]) -> Iterator[Pool]:
    """Give a pool of the tracker's two devices, which have taken a kernel."""
    address = f"rpc://127.0.0.1:{tracker.port}/k"
    measurers = [Measurer(host_cpu(), LIMIT, device=address) for _ in range(2)]
    with Pool(measurers, told.append) as pool:
        for measurer in measurers:
            measurer.take_function(kernel(twice), ARGUMENTS, "doubling")
        yield pool
