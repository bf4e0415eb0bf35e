"""Records: they come back as they were written, survive anything, and decide what is compiled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model
from bitfabric.compiler.cache import key_of
from bitfabric.compiler.compile import TUNING
from bitfabric.compiler.tuning.applied import Tuning, devices_of, summary
from bitfabric.compiler.tuning.kernels import kernels_of
from bitfabric.compiler.tuning.measure import Measurer
from bitfabric.compiler.tuning.pool import Pool
from bitfabric.compiler.tuning.records import (
    Device,
    Record,
    best,
    load,
    load_strictly,
    record_of,
    user_file,
)
from bitfabric.compiler.tuning.signature import Signature, distance, signature_of
from bitfabric.compiler.tuning.store import append, read, write
from bitfabric.compiler.tuning.tuner import Tuner
from bitfabric.models import RandomCheckpoint
from bitfabric.targets import FabricError, get_target, host_cpu
from hypothesis import given
from hypothesis import strategies as st

from ..parity.conftest import BASE

OPTIONS = CompileOptions(context=16, lora=LoraOptions(rank=4))
HERE, ELSEWHERE = Device("Here", "1", 2), Device("Elsewhere", "2", 8)

names = st.text(max_size=12)
sizes = st.integers(0, 1 << 40)
extents = st.lists(sizes | st.sampled_from("abc"), min_size=1, max_size=4)
signatures = st.builds(
    Signature,
    names,
    st.dictionaries(names, sizes | names | st.lists(sizes, max_size=3), max_size=3),
    st.lists(st.tuples(names, extents).map(list), min_size=1, max_size=4),
)
times = st.floats(1e-9, 1e3)
decisions = st.dictionaries(names, sizes | names | st.tuples(sizes, sizes), max_size=4)
records = st.builds(
    Record,
    kernel=signatures,
    decisions=decisions,
    seconds=times,
    default_seconds=times,
    trials=sizes,
    target=names,
    features=st.lists(names, max_size=3).map(tuple),
    device=st.builds(Device, names, names, sizes),
    tvm=names,
)


@pytest.fixture(autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of the test's own."""
    path = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("BITFABRIC_DATA", str(path))
    return path


@given(st.lists(records, max_size=4))
def test_records_come_back_as_they_were_written(found: list[Record]) -> None:
    path = user_file("test")
    path.unlink(missing_ok=True)
    write(path, (record.to_json() for record in found[:2]))
    for record in found[2:]:
        append(path, record.to_json())
    assert load(path) == (found, [])
    assert load_strictly(path) == found
    once = best(found)
    assert best([*once, *found]) == once
    assert all(any(r.place == kept.place for kept in once) for r in found)


@given(records, st.data())
def test_a_changed_record_is_refused(record: Record, data: st.DataObject) -> None:
    stored = record.to_json()
    name = data.draw(st.sampled_from(sorted(stored)))
    stored[name] = data.draw(
        st.none() | st.integers(-9, 9) | names.filter(lambda n: n != stored[name])
    )
    with pytest.raises(ValueError, match=r"."):
        Record.from_json(stored)


def a_record(kernel: Signature, device: Device = HERE, ratio: float = 0.5, **decisions) -> Record:
    return record_of(host_cpu(), device, kernel, decisions, (ratio * 1e-3, 1e-3), 10)


def toy(size: int) -> Signature:
    return Signature("toy", {"heads": 2}, [["float32", ["a", size]], ["float32", [size]]])


def test_a_damaged_line_is_named_and_skipped_or_refused() -> None:
    path = user_file("test")
    for size in (64, 128):
        append(path, a_record(toy(size)).to_json())
    whole = path.read_bytes()
    first, second, _ = whole.split(b"\n")
    path.write_bytes(
        first[:-30] + b"\n" + second.replace(b'"trials":10', b'"trials":11') + b"\n\n7"
    )
    found, notes = load(path)
    assert found == []
    assert ["line 1: it is damaged" in notes[0], "line 4" in notes[1], "line 2" in notes[2]] == [
        True, True, True,
    ]  # fmt: skip
    with pytest.raises(FabricError, match="line 1: it is damaged"):
        load_strictly(path)


def test_a_line_after_one_that_was_cut_short_is_whole() -> None:
    path = user_file("test")
    append(path, a_record(toy(64)).to_json())
    path.write_bytes(path.read_bytes()[:-40])
    append(path, a_record(toy(128)).to_json())
    found, notes = load(path)
    assert [record.kernel for record in found] == [toy(128)]
    assert len(notes) == 1


WRITER = """
import json, sys
sys.path.insert(0, {folder!r})
import importlib.util
spec = importlib.util.spec_from_file_location("bitfabric.compiler.tuning.store", {store!r})
store = importlib.util.module_from_spec(spec)
spec.loader.exec_module(store)
from pathlib import Path
for n in range(int(sys.argv[2])):
    store.append(Path(sys.argv[1]), {{"writer": sys.argv[3], "n": n, "filling": "x" * 5000}})
"""


def writer(path: Path, count: int, name: str) -> subprocess.Popen:
    store = Path(__file__).parents[2] / "compiler" / "tuning" / "store.py"
    code = WRITER.format(folder="", store=str(store))
    return subprocess.Popen([sys.executable, "-c", code, str(path), str(count), name])


def test_several_writers_lose_no_line() -> None:
    path = user_file("test")
    running = [writer(path, 40, name) for name in "abc"]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    lines, damaged = read(path)
    assert damaged == []
    for name in "abc":
        assert [line["n"] for _, line in lines if line["writer"] == name] == list(range(40))


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_a_killed_writer_costs_one_line_at_most() -> None:
    path = user_file("test")
    for _ in range(3):
        process = writer(path, 100_000, "a")
        end = time.monotonic() + 30
        while not path.exists() or path.stat().st_size < 50_000:
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    append(path, {"writer": "last", "n": 0})
    lines, damaged = read(path)
    assert len(damaged) <= 3
    assert lines[-1][1]["writer"] == "last"
    assert len(lines) > 10


def test_a_kernel_is_what_it_computes_whatever_it_is_called() -> None:
    kernels = {k.signature.kernel: k for k in kernels_of(BASE, host_cpu(), OPTIONS)}
    kernel = kernels["bitlinear_vjp"]
    renamed = kernel.function.with_attr("global_symbol", "another_name")
    assert signature_of(renamed) == kernel.signature
    other = kernels_of(replace(BASE, num_layers=1, rms_norm_eps=1e-6), host_cpu(), OPTIONS)
    # The layers' norms stand in one tensor, which is as long as there are layers.
    assert {k.signature.key for k in other if k.signature.kernel != "concat"} == {
        k.signature.key
        for k in kernels_of(BASE, host_cpu(), OPTIONS)
        if k.signature.kernel != "concat"
    }
    wider = kernels_of(replace(BASE, intermediate_size=112), host_cpu(), OPTIONS)
    assert {k.signature.key for k in wider} != {k.signature.key for k in other}
    assert kernels["adamw"].calls == {"training": 2, "prefill": 0, "decode": 0}
    assert kernels["decode_attention"].calls == {"training": 0, "prefill": 0, "decode": 2}


def decided(tuning: Tuning, kernel: Signature, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setattr("bitfabric.compiler.tuning.applied.signature_of", lambda f: kernel)
    return tuning.decisions(None)


def test_the_nearest_shape_serves_where_none_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [a_record(toy(64), tile=64), a_record(toy(100), tile=100), a_record(toy(4096), tile=1)]
    tuning = Tuning(host_cpu(), found, HERE)
    assert decided(tuning, toy(64), monkeypatch) == {"tile": 64}
    assert decided(tuning, toy(128), monkeypatch) == {"tile": 100}
    assert decided(tuning, toy(1 << 20), monkeypatch) == {}
    assert decided(tuning, replace(toy(64), kernel="other"), monkeypatch) == {}
    assert summary(tuning.account()) == {"tuned": 1, "near": 1, "default": 2}
    assert distance(toy(64), toy(64)) == 0.0


def test_only_records_of_the_same_kind_of_device_count(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = a_record(toy(64), tile=1), a_record(toy(64), ELSEWHERE, 0.1, tile=2)
    assert decided(Tuning(host_cpu(), [other, mine], HERE), toy(64), monkeypatch) == {"tile": 1}
    foreign = Tuning(host_cpu(), [other], HERE)
    assert decided(foreign, toy(64), monkeypatch) == {"tile": 2}
    assert devices_of(foreign.account()) == ["Elsewhere, 8 threads"]
    for wrong in ({"target": "adreno"}, {"features": ("mmx",)}, {"tvm": "0.1"}):
        stranger = Tuning(host_cpu(), [replace(mine, **wrong)], HERE)
        assert decided(stranger, toy(64), monkeypatch) == {}


def test_a_search_begins_with_what_other_targets_records_say() -> None:
    kernels = [k for k in kernels_of(BASE, host_cpu(), OPTIONS) if k.signature.kernel == "adamw"]
    other = "cpu-avx2" if host_cpu().name != "cpu-avx2" else "cpu-avx512"
    mine = a_record(kernels[0].signature, chunk=2048)
    append(user_file(other), replace(mine, target=other).to_json())
    with Pool([Measurer(host_cpu())], print) as pool:
        (task,) = Tuner(kernels, host_cpu(), HERE, pool).tasks
    assert task.search.propose(1)[0]["chunk"] == 2048
    assert task.record is None
    assert not task.skipped


def test_the_digest_changes_with_the_records() -> None:
    tunings = [Tuning(host_cpu()), Tuning(host_cpu(), [a_record(toy(64), tile=1)])]
    tunings.append(Tuning(host_cpu(), [a_record(toy(64), tile=2)]))
    keys = {key_of(BASE, host_cpu(), OPTIONS, tuning.digest) for tuning in tunings}
    assert len(keys) == 3
    assert Tuning(host_cpu(), [a_record(toy(64), tile=2)]).digest == tunings[2].digest


def bundle_of(folder: Path, monkeypatch: pytest.MonkeyPatch, tuning: Tuning | None = None) -> Path:
    """Compile a model in earnest: with a cache of its own."""
    monkeypatch.setenv("BITFABRIC_CACHE", str(folder / "cache"))
    model = RandomCheckpoint(BASE, 1, "random:1")
    return compile_model(model, get_target("cpu"), OPTIONS, folder / "bundle", tuning=tuning)


def files_of(bundle: Path) -> dict:
    return json.loads((bundle / "manifest.json").read_text())["files"]


def one_record() -> Signature:
    """Make a record of the user's own for one kernel."""
    kernels = {k.signature.kernel: k.signature for k in kernels_of(BASE, host_cpu(), OPTIONS)}
    append(user_file(host_cpu().name), a_record(kernels["adamw"], chunk=2048).to_json())
    return kernels["adamw"]


@pytest.mark.slow
def test_a_bundle_says_what_its_schedules_rest_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = one_record()
    bundle = bundle_of(tmp_path, monkeypatch)
    account = json.loads((bundle / TUNING).read_text())
    assert account["kernels"][kernel.key]["record"]["decisions"] == {"chunk": 2048}
    assert summary(account)["tuned"] == 1
    assert TUNING in files_of(bundle)


@pytest.mark.slow
def test_the_same_records_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_record()
    first, second = (files_of(bundle_of(tmp_path / name, monkeypatch)) for name in "ab")
    assert first == second
    plain = files_of(bundle_of(tmp_path / "c", monkeypatch, Tuning(host_cpu())))
    assert plain["module.so"] != first["module.so"]
