"""Threads: as many as the process may use, where it may use them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bitfabric.runtime.library import LOOKS, prepare_threads, processors, time_share

SCRIPT = """
import os, sys
os.sched_setaffinity(0, {{{processor}}})
import bitfabric.compiler, tvm
from bitfabric.runtime.library import load_runtime
from tvm import te
load_runtime()
x = te.placeholder((64, 64), "float32", "x")
schedule = tvm.s_tir.Schedule(te.create_prim_func([x, te.compute(x.shape, lambda i, j: x[i, j])]))
(block,) = schedule.get_child_blocks(schedule.get_sblock("root"))
schedule.parallel(schedule.get_loops(block)[0])
kernel = tvm.compile(schedule.mod, target={{"kind": "llvm"}})
tensors = [tvm.runtime.empty((64, 64), "float32") for _ in range(2)]
kernel["main"](*tensors)
print(os.environ["TVM_NUM_THREADS"])
for task in os.listdir("/proc/self/task"):
    print(*os.sched_getaffinity(int(task)))
"""


def groups(folder: Path, **bounds: str) -> tuple[Path, Path]:
    """Write a tree of groups, ``outer/inner``, and the file that says we are in the inner one."""
    for name in ("outer", "inner"):
        path = folder / "tree" / ("outer" if name == "outer" else "outer/inner")
        path.mkdir(parents=True, exist_ok=True)
        if name in bounds:
            (path / "cpu.max").write_text(bounds[name] + "\n")
    (folder / "own").write_text("1:cpu:/other\n0::/outer/inner\n")
    return folder / "tree", folder / "own"


@pytest.mark.parametrize(
    ("bounds", "share"),
    [
        ({"outer": "150000 100000"}, 1.5),
        ({"outer": "400000 100000", "inner": "200000 100000"}, 2.0),
        ({"outer": "200000 100000", "inner": "max 100000"}, 2.0),
        ({"inner": "max 100000"}, None),
        ({"inner": "damaged"}, None),
        ({}, None),
    ],
)
def test_a_container_has_the_time_that_it_was_given(
    tmp_path: Path, bounds: dict[str, str], share: float | None
) -> None:
    assert time_share(*groups(tmp_path, **bounds)) == share
    assert time_share(tmp_path / "none", tmp_path / "none") is None


def test_there_is_a_processor() -> None:
    assert 1 <= processors() <= (os.cpu_count() or 1)


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs Linux and two processors",
)
def test_threads_stay_where_the_process_is_confined() -> None:
    # Not the first: TVM would bind its threads from there on.
    processor = max(os.sched_getaffinity(0))
    own = ("TVM_NUM_THREADS", "TVM_BIND_THREADS")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(processor=processor)],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in own},
    )
    assert done.returncode == 0, done.stderr
    threads, *affinities = done.stdout.splitlines()
    assert threads == "1"
    assert set(affinities) == {str(processor)}


def test_a_thread_looks_for_work_as_often_as_the_user_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TVM_THREAD_POOL_SPIN_COUNT", raising=False)
    prepare_threads()
    assert os.environ["TVM_THREAD_POOL_SPIN_COUNT"] == str(LOOKS)
    monkeypatch.setenv("TVM_THREAD_POOL_SPIN_COUNT", "7")
    prepare_threads()
    assert os.environ["TVM_THREAD_POOL_SPIN_COUNT"] == "7"
