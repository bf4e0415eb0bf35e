"""Kernels without a rule of ours are tuned through MetaSchedule, on every kind of device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bitfabric.compiler.tuning import trace_model, tuner
from bitfabric.compiler.tuning.applied import TUNED, Tuning
from bitfabric.compiler.tuning.device import this_device
from bitfabric.compiler.tuning.kernels import Kernel
from bitfabric.compiler.tuning.measure import Failed, Measured, Measurer
from bitfabric.compiler.tuning.pool import Pool
from bitfabric.compiler.tuning.records import Device, load, user_file
from bitfabric.compiler.tuning.signature import distance, signature_of
from bitfabric.compiler.tuning.trace_search import TraceSearch
from bitfabric.schedules import schedule
from bitfabric.schedules.decisions import deciding
from bitfabric.schedules.trace import TRACE, replayed
from bitfabric.targets import Target, host_cpu
from tvm import te, tirx

from ..schedules.kernel_harness import every_gpu

HERE = Device("Here", "1", 2)


@pytest.fixture(autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of the test's own."""
    path = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("BITFABRIC_DATA", str(path))
    return path


def elementwise(rows: int, columns: int) -> tirx.PrimFunc:
    """Return ``z = x * sigmoid(y)`` in two blocks, as TVM lowers operators."""
    x, y = (te.placeholder((rows, columns), "float32", name) for name in "xy")
    gate = te.compute(x.shape, lambda i, j: te.sigmoid(y[i, j]), "T_sigmoid")
    product = te.compute(x.shape, lambda i, j: x[i, j] * gate[i, j], "T_multiply")
    return te.create_prim_func([x, y, product])


def sums(rows: int, columns: int) -> tirx.PrimFunc:
    """Return the sums of the columns."""
    x = te.placeholder((rows, columns), "float32", "x")
    row = te.reduce_axis((0, rows), "row")
    total = te.compute((columns,), lambda j: te.sum(x[row, j], axis=row), "T_sum")
    return te.create_prim_func([x, total])


def kernel_of(function: tirx.PrimFunc, target: Target) -> Kernel:
    calls = {"training": 1, "prefill": 0, "decode": 0}
    return Kernel(function, target, signature_of(function), calls)


def searched(function: tirx.PrimFunc, target: Target, batches: int) -> TraceSearch:
    """Measure some batches of a kernel's traces; every one must compute the right numbers."""
    kernel = kernel_of(function, target)
    default, asked = kernel.lay_out()
    assert TRACE in asked.choices
    assert TRACE not in asked.values
    search = TraceSearch(function, target, trace_model.load(), 2, 1)
    with Measurer(target) as measurer:
        measurer.take(kernel, default)
        for _ in range(batches):
            results = []
            for values in search.propose(2):
                laid_out, answered = kernel.lay_out(values)
                assert answered.values == values
                found = measurer.compare(laid_out, 0.02)
                assert isinstance(found, Measured), (found, laid_out.script())
                results.append((values, found.ratio))
            search.tell(results)
    assert search.trials == 2 * batches
    return search


@pytest.mark.parametrize("function", [elementwise(24, 96), sums(32, 96)], ids=["elements", "sums"])
def test_traces_compute_the_right_numbers(function: tirx.PrimFunc) -> None:
    search = searched(function, host_cpu(), 2)
    assert search.model.data_size == 4


@every_gpu
@pytest.mark.slow
def test_traces_compute_the_right_numbers_on_a_device(target: Target) -> None:
    searched(elementwise(8, 96), target, 1)
    searched(sums(8, 64), target, 1)


def test_a_trace_becomes_a_record_that_is_applied_without_a_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compare = Measurer.compare

    def halved(self: Measurer, candidate: tirx.PrimFunc, *limits: float) -> Measured | Failed:
        """Any candidate that computes the right numbers counts as twice as fast."""
        found = compare(self, candidate, 0.01)
        if isinstance(found, Failed):
            return found
        return replace(found, ratio=0.5, low=0.5, high=0.5)

    monkeypatch.setattr(Measurer, "compare", halved)
    target, function = host_cpu(), sums(64, 64)
    device = this_device(target)
    assert device is not None
    with Pool([Measurer(target)], print) as pool:
        search = tuner.Tuner([kernel_of(function, target)], target, device, pool)
        search.weigh(lambda *_: None)
        search.run(4, 60.0, lambda _: None)
        assert search.progress.failures == {}
        again = tuner.Tuner([kernel_of(function, target)], target, device, pool, resume=True)
    (task,) = again.tasks
    assert task.search.trials == search.progress.trials > 0
    assert task.search.model.data_size == search.progress.trials
    records, notes = load(user_file(target.name))
    assert notes == []
    kept = [record for record in records if record.decisions]
    assert kept
    tuning = Tuning(target, kept, device)
    with deciding(tuning.decisions(function)):
        rule, laid_out = schedule(function, target)
    assert laid_out.script() != schedule(function, target)[1].script()
    assert rule.endswith("default")
    (entry,) = tuning.account()["kernels"].values()
    assert entry["from"] == TUNED
    assert entry["kernel"].startswith("sum 64x64")


def test_a_kernel_is_what_it_computes_of_any_size() -> None:
    one, other = (signature_of(elementwise(8, size)) for size in (64, 128))
    assert one.key != other.key
    assert distance(one, other) is not None
    assert distance(one, signature_of(sums(8, 64))) is None
    renamed = elementwise(8, 64).with_attr("global_symbol", "other").with_attr("op_pattern", 0)
    assert signature_of(renamed) == one


def trace(*steps: list, decisions: tuple = ()) -> str:
    first = [["GetSBlock", [], ["T_sum", "main"], ["b0"]], ["GetLoops", ["b0"], [], ["l1", "l2"]]]
    return json.dumps([[*first, *steps], list(decisions)])


def test_a_trace_that_does_not_fit_or_brings_code_is_not_replayed() -> None:
    target, function = host_cpu(), sums(8, 64)
    assert replayed(function, trace(["Parallel", ["l1"], [], []]), target) is not None
    bad = [
        "",
        "[]",
        '[[["GetSBlock", [], ["T_other", "main"], ["b0"]]], []]',
        trace(["Parallel", ["l2"], [], []]),
        trace(["Bind", ["l1"], ["threadIdx.x"], []]),
        trace(["Annotate", ["l1", '"int f;"'], ["pragma_import_c"], []]),
        trace(["Tensorize", ["l1"], ["dot_4x4", 1], []]),
    ]
    for text in bad:
        assert replayed(function, text, target) is None, text
        with deciding({TRACE: text}) as asked:
            _, laid_out = schedule(function, target)
        assert TRACE not in asked.values
        assert laid_out.script() == schedule(function, target)[1].script()


@every_gpu
def test_a_launch_is_no_larger_than_the_device_allows(target: Target) -> None:
    steps = (["Bind", ["l1"], ["threadIdx.x"], []],)
    assert replayed(sums(8, 64), trace(*steps), target) is not None
    assert target.limits is not None
    small = replace(target, limits=replace(target.limits, max_threads=32))
    assert replayed(sums(8, 64), trace(*steps), small) is None
    assert replayed(sums(8, 64), trace(), target) is None
