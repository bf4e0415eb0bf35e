"""Devices elsewhere, on loopback: the same bits as here, through kills, freezes and refusals."""

from __future__ import annotations

import copy
import math
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bitfabric.runtime import Batch, Bundle, InferenceEngine, TrainingEngine
from bitfabric.runtime.remote import (
    Address,
    RemoteError,
    RemoteInferenceEngine,
    RemoteTrainingEngine,
    dialer,
    engines,
    is_remote,
    parse_address,
)
from bitfabric.runtime.remote.message import pack, unpack
from bitfabric.runtime.remote.tracker import Tracker
from bitfabric.targets.manifest import digest

from ..devices import every_api
from ..parity.conftest import compile_tiny
from .remote_tools import PATIENCE, Device, TvmTracker, free_port

LORA = {"rank": 2, "modules": ("q_proj", "down_proj")}
pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform == "win32", reason="serving needs Android, Linux or macOS"),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    case = {"lora": LORA, "config": {"num_layers": 1}}
    return compile_tiny(tmp_path_factory.mktemp("tiny"), case).bundle


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device's folder for bundles, which most tests share."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def device(store: Path) -> Iterator[Device]:
    with Device(store, "--name", "pixel") as device:
        yield device


def batch(bundle: Bundle, seed: int) -> Batch:
    tokens = np.random.default_rng(seed).integers(0, 61, (1, bundle.context), np.int32)
    return Batch(tokens, np.roll(tokens, -1, 1), np.zeros_like(tokens))


def step(engine, bundle: Bundle, number: int) -> list[float]:
    """One step of two micro-batches; everything that it gives."""
    losses = [
        engine.accumulate(batch(bundle, seed), 1 / 24, seed=seed)
        for seed in (2 * number, 2 * number + 1)
    ]
    norm = engine.update(learning_rate=1e-2, step=number, weight_decay=0.1, clip_norm=0.5)
    return [*losses, norm, engine.evaluate(batch(bundle, 0))]


def assert_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_training_there_gives_the_bits_of_training_here(bundle: Bundle, device: Device) -> None:
    here = TrainingEngine(bundle)
    there = RemoteTrainingEngine(bundle, device.address, patience=PATIENCE)
    for engine in (here, there):
        engine.initialize_adapter(7)
    for number in (1, 2):
        assert step(there, bundle, number) == step(here, bundle, number)
    state = here.state()
    assert_equal(there.state(), state)
    assert_equal(there.adapter_tensors(), here.adapter_tensors())
    for engine in (here, there):
        engine.load_adapter_tensors(here.adapter_tensors())
    assert step(there, bundle, 1) == step(here, bundle, 1)
    for engine in (here, there):
        engine.load_state(state)
    assert step(there, bundle, 3) == step(here, bundle, 3)
    assert there.device_memory_mib == 0.0


@every_api
@pytest.mark.slow
def test_a_device_there_gives_the_bits_of_the_device_here(
    kind: str, device: Device, tmp_path: Path
) -> None:
    case = {"lora": LORA, "config": {"num_layers": 1}}
    bundle = compile_tiny(tmp_path, case, target=f"{kind}:auto", head="int8").bundle
    here = TrainingEngine(bundle)
    there = RemoteTrainingEngine(bundle, device.address, patience=PATIENCE)
    for engine in (here, there):
        engine.initialize_adapter(7)
    assert step(there, bundle, 1) == step(here, bundle, 1)
    assert_equal(there.adapter_tensors(), here.adapter_tensors())
    assert there.device_memory_mib > 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_session_loads_tvms_runtime_and_no_compiler(bundle: Bundle, device: Device) -> None:
    engine = RemoteTrainingEngine(bundle, device.address, patience=PATIENCE)
    (session,) = device.children()
    maps = Path(f"/proc/{session}/maps").read_text()
    assert "libtvm_runtime.so" in maps
    assert "libtvm_compiler" not in maps
    assert "libtvm_runtime_extra" not in maps
    engine.close()


def test_writing_there_gives_the_logits_of_writing_here(bundle: Bundle, device: Device) -> None:
    trained = TrainingEngine(bundle)
    trained.initialize_adapter(1)
    step(trained, bundle, 1)
    adapters = [(trained.adapter_tensors(), 0.5), (trained.adapter_tensors(), 0.25)]
    here = InferenceEngine(bundle, adapters, capacity=40)
    there = RemoteInferenceEngine(bundle, device.address, adapters, 40, patience=PATIENCE)
    assert there.capacity == here.capacity
    for round_ in range(2):
        np.testing.assert_array_equal(there.prefill([5, 6, 7]), here.prefill([5, 6, 7]))
        for token in (8, 9):
            np.testing.assert_array_equal(there.decode(token), here.decode(token))
        for engine in (here, there):
            engine.rewind(4)
        np.testing.assert_array_equal(there.decode(9), here.decode(9))
        if round_ == 0:
            # As if the cable was pulled: the cache is filled again before the next token.
            there._station._link.close()
        np.testing.assert_array_equal(there.decode(10), here.decode(10))
        assert there.position == here.position == 6
        for engine in (here, there):
            engine.reset()
    assert there.position == 0
    with pytest.raises(RemoteError, match=r"pixel at .*there is room for"):
        there.prefill([1] * 200)


def test_a_server_that_dies_and_comes_back_costs_nothing(bundle: Bundle, store: Path) -> None:
    here, notes = TrainingEngine(bundle), []
    with Device(store, "--name", "pixel") as first:
        there = RemoteTrainingEngine(bundle, first.address, notes.append, patience=PATIENCE)
        for engine in (here, there):
            engine.initialize_adapter(7)
        assert step(there, bundle, 1) == step(here, bundle, 1)
        for engine in (here, there):
            engine.state()
        assert step(there, bundle, 2) == step(here, bundle, 2)
        # Half of a step is done when it happens.
        for engine in (here, there):
            engine.accumulate(batch(bundle, 50), 1 / 24, seed=9)
        first.kill()
    restarted: list[Device] = []

    def restart() -> None:
        time.sleep(1.5)
        restarted.append(Device(store, "--name", "pixel", port=first.port))

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        assert step(there, bundle, 3) == step(here, bundle, 3)
        assert_equal(there.state(), here.state())
    finally:
        thread.join()
        restarted[0].kill()
    assert notes[0].startswith(f"Pixel at 127.0.0.1:{first.port} closed the connection.")
    assert notes[-1] == f"Going on with pixel at 127.0.0.1:{first.port}."


def test_the_state_is_fetched_before_too_much_would_have_to_be_repeated(
    bundle: Bundle, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "SNAPSHOT_STEPS", 2)
    here = TrainingEngine(bundle)
    there = RemoteTrainingEngine(bundle, device.address, patience=PATIENCE)
    for engine in (here, there):
        engine.initialize_adapter(7)
    for number in range(1, 6):
        assert step(there, bundle, number) == step(here, bundle, number)
        names = [call.name for call in there._station.journal]
        assert names.count("train.update") < 2
    there._station._link.close()
    assert_equal(there.state(), here.state())


def test_a_frozen_device_is_told_by_its_name(bundle: Bundle, device: Device) -> None:
    there = RemoteTrainingEngine(bundle, device.address, patience=PATIENCE)
    there.initialize_adapter(7)
    quick = Address("127.0.0.1", device.port, "k")
    device.signal(signal.SIGSTOP)
    with pytest.raises(RemoteError, match="accepts connections and did not answer for 3 s"):
        RemoteTrainingEngine(bundle, quick, patience=PATIENCE)
    device.signal(signal.SIGCONT)
    there.initialize_adapter(7)


def test_a_call_without_end_is_given_up(bundle: Bundle, device: Device) -> None:
    import fcntl

    # The session waits for a lock that this test holds, as it might for a driver; it lives, though.
    lock = device.folder / f"{bundle.manifest['digest']}.lock"
    lock.parent.mkdir(exist_ok=True)
    endless = Address("127.0.0.1", device.port, "k", timeout=1.5)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        notes: list[str] = []
        with pytest.raises(RemoteError, match=r"pixel at .* has failed 4 times at the same work"):
            RemoteTrainingEngine(bundle, endless, notes.append, patience=PATIENCE)
    assert notes[0].endswith("came to no end within 1.5 s. Trying again.")


@pytest.mark.slow
def test_a_tracker_hands_out_its_devices_and_a_frozen_one_is_skipped(
    bundle: Bundle, store: Path
) -> None:
    pytest.importorskip("tornado")
    here, notes = TrainingEngine(bundle), []
    here.initialize_adapter(7)
    with TvmTracker() as tracker:
        place = f"127.0.0.1:{tracker.port}"
        with pytest.raises(RemoteError, match=r"has no device with the key 'phone'; it has: none"):
            RemoteTrainingEngine(bundle, tracker.address("phone"), patience=PATIENCE)
        options = ("--tracker", place)
        with (
            Device(store, *options, "--name", "pixel", key="phone") as pixel,
            Device(store, *options, "--name", "galaxy", key="phone") as galaxy,
        ):
            wait_for(lambda: len(free_devices(tracker.port).get("phone", [])) == 2)
            with pytest.raises(RemoteError, match=r"no device with the key 'board'.*has: phone"):
                RemoteTrainingEngine(bundle, tracker.address("board"), patience=PATIENCE)
            # A device of a tracker has another key for every session.
            with pytest.raises(RemoteError, match="has another key than 'phone'"):
                RemoteTrainingEngine(bundle, pixel.address, patience=PATIENCE)
            address = tracker.address("phone")
            there = RemoteTrainingEngine(bundle, address, notes.append, patience=PATIENCE)
            there.initialize_adapter(7)
            assert step(there, bundle, 1) == step(here, bundle, 1)
            name = there._station._link.name
            used, other = (pixel, galaxy) if name.startswith("pixel") else (galaxy, pixel)
            used.signal(signal.SIGSTOP)
            assert step(there, bundle, 2) == step(here, bundle, 2)
            assert_equal(there.state(), here.state())
            assert notes[0] == (f"{name.capitalize()} did not answer for 6 s. It is skipped.")
            assert there._station._link.where == f"127.0.0.1:{other.port}"
            # One hangs, the other is busy.
            short = replace(PATIENCE, retry=3.0)
            with pytest.raises(
                RemoteError, match="None of the 2 devices with the key 'phone' became"
            ):
                RemoteTrainingEngine(bundle, address, notes.append, patience=short)
            assert notes[-1] == "No device with the key 'phone' is free. Waiting for one."
            there.close()
            # The other is frozen too: nobody is left.
            again = RemoteTrainingEngine(bundle, address, patience=PATIENCE)
            again._station._dialer.skipped[f"127.0.0.1:{used.port}"] = f"{name} hangs"
            other.signal(signal.SIGSTOP)
            with pytest.raises(RemoteError, match=r"No device with the key 'phone' is left: .*;"):
                again.initialize_adapter(7)


def free_devices(port: int) -> dict[str, list[str]]:
    with Tracker("127.0.0.1", port, 5.0) as tracker:
        return tracker.devices()


def wait_for(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_busy_device_is_waited_for(bundle: Bundle, device: Device) -> None:
    first = RemoteInferenceEngine(bundle, device.address, patience=PATIENCE)
    timer = threading.Timer(3.0, first.close)
    timer.start()
    notes: list[str] = []
    RemoteInferenceEngine(bundle, device.address, tell=notes.append, patience=PATIENCE).prefill([1])
    assert notes == [
        f"The device at 127.0.0.1:{device.port} is busy with another session. Waiting for it."
    ]


def test_refusals(bundle: Bundle, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(address: Address, what: str, of: Bundle = bundle) -> None:
        with pytest.raises(RemoteError, match=what) as caught:
            RemoteTrainingEngine(of, address, patience=PATIENCE)
        assert caught.value.cause.endswith(".")

    refused(Address("127.0.0.1", free_port()), "Nothing listens at 127.0.0.1")
    refused(Address("127.0.0.1", device.port, "other"), "has another key than 'other'")
    refused(Address("127.0.0.1", device.port), "has another key than ''")
    refused(Address("nowhere.invalid", 9190), "can't be reached")
    manifest = copy.deepcopy(bundle.manifest)
    manifest["target"]["features"] = ["warp-drive"]
    manifest["digest"] = digest(manifest)
    refused(device.address, "lacks warp-drive", Bundle(bundle.path, manifest))
    named = Address("127.0.0.1", device.port, "k", bundle="/nowhere.fabric")
    refused(named, "pixel at .*/nowhere.fabric is not a bundle")
    monkeypatch.setattr(dialer, "PROTOCOL", 99)
    refused(device.address, "which does not understand this machine's")


def test_other_servers_are_told_from_ours(bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(2):
                sock, _ = listener.accept()
                sock.recv(100)
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                sock.close()

        threading.Thread(target=serve, daemon=True).start()
        address = Address("127.0.0.1", listener.getsockname()[1], "k")
        with pytest.raises(RemoteError, match="is no TVM RPC server"):
            RemoteTrainingEngine(bundle, address, patience=PATIENCE)


def test_a_bundle_is_sent_once_and_the_rest_of_one_that_broke_off(
    bundle: Bundle, tmp_path: Path
) -> None:
    class CutError(Exception):
        pass

    def open_engine(stop: float = math.inf) -> list[float]:
        shares: list[float] = []

        def progress(phase: str, share: float) -> None:
            shares.append(share)
            if share > stop:
                raise CutError

        engine = RemoteInferenceEngine(bundle, device.address, progress=progress, patience=PATIENCE)
        engine.close()
        return shares

    with Device(tmp_path / "bundles") as device:
        with pytest.raises(CutError):
            open_engine(stop=0.5)
        resumed = open_engine()
        assert resumed[0] > 0.5
        assert resumed[-1] == 1.0
        assert open_engine() == []
        # A disk that has changed a bit: the file is sent again, after all.
        stored = tmp_path / "bundles" / bundle.manifest["digest"]
        module = stored / "module.so"
        content = bytearray(module.read_bytes())
        content[len(content) // 2] ^= 1
        module.write_bytes(content)
        assert open_engine()[0] == 0.0
        assert module.read_bytes() == bundle.module_path.read_bytes()
        # One that lies elsewhere on the device is used where it lies.
        module.write_bytes(content)
        named = Address("127.0.0.1", device.port, "k", bundle=str(bundle.path))
        RemoteInferenceEngine(bundle, named, patience=PATIENCE).prefill([1])


def test_tvms_own_client_loads_and_times_kernels(device: Device, tmp_path: Path) -> None:
    tvm = pytest.importorskip("tvm")
    from tvm import rpc, te

    x = te.placeholder((64,), "float32", "x")
    function = te.create_prim_func([x, te.compute((64,), lambda i: x[i] * 2.0 + 1.0, "y")])
    path = tmp_path / "kernel.so"
    tvm.compile(tvm.IRModule({"main": function}), target="llvm").export_library(str(path))
    session = rpc.connect("127.0.0.1", device.port, device.key)
    session.upload(str(path))
    module = session.load_module("kernel.so")
    where = session.cpu(0)
    given = np.arange(64, dtype=np.float32)
    arrays = [tvm.runtime.tensor(a, where) for a in (given, np.zeros_like(given))]
    module["main"](*arrays)
    np.testing.assert_array_equal(arrays[1].numpy(), 2 * given + 1)
    timed = module.time_evaluator("main", where, number=3)(*arrays)
    assert timed.mean > 0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("rpc://10.0.0.2", Address("10.0.0.2", 9190)),
        ("rpc://phone:1234/", Address("phone", 1234)),
        ("rpc://[::1]:9190/pixel-8", Address("::1", 9190, "pixel-8")),
        (
            "rpc://h/k?bundle=/sdcard/nano.fabric&timeout=2.5",
            Address("h", 9190, "k", "/sdcard/nano.fabric", 2.5),
        ),
    ],
)
def test_addresses(text: str, wanted: Address) -> None:
    assert is_remote(text)
    assert parse_address(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["rpc://", "rpc://h:port", "rpc://h:99999", "rpc://h/a b", "rpc://h/a/b", "rpc://h?x=1",
     "rpc://h?timeout=soon", "rpc://h?timeout=0", "rpc://me@h"],
)  # fmt: skip
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(RemoteError):
        parse_address(text)


def test_messages_keep_every_bit() -> None:
    values = {"loss": 0.1 + 0.2, "inf": -math.inf, "text": "ü", "none": None, "big": 2**63}
    arrays = {
        "f": np.array([np.nan, -0.0, 1e-45], np.float32),
        "i": np.arange(6, dtype=np.int32).reshape(2, 3)[:, ::2],
        "empty": np.zeros((0, 4), np.uint8),
    }
    found, got = unpack(pack(values, arrays))
    assert found == values
    assert got.keys() == arrays.keys()
    for name, array in arrays.items():
        assert got[name].dtype == array.dtype
        assert got[name].tobytes() == array.tobytes()
        assert got[name].shape == array.shape
        got[name][...] = 0


def test_messages_that_are_none() -> None:
    with pytest.raises(TypeError, match="float64"):
        pack({}, {"x": np.zeros(1)})
    for raw in (b"", b"\xff" * 12, pack({}, {"x": np.zeros(4, np.float32)})[:-1]):
        with pytest.raises(ValueError, match=r"message|buffer|Expecting|decode"):
            unpack(raw)
