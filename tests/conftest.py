"""What every test shares.

Tests compile and run in one process, so the whole of TVM must be loaded before the runtime, which
would load a part of it. Compiled modules are kept between runs, away from the user's own cache. The
first device of every kind is named, so that a processor that poses as one is used, too; here, as no
process whose drivers have threads may change its environment.
"""

from __future__ import annotations

import os
from pathlib import Path

import bitfabric.compiler  # noqa: F401
import hypothesis
import pytest

CACHE = Path(__file__).parent.parent / ".pytest_cache" / "modules"
os.environ.setdefault("BITFABRIC_CACHE", str(CACHE))
# The user's own tuning records decide nothing here.
os.environ.setdefault("BITFABRIC_DATA", str(CACHE.parent / "data"))
os.environ.setdefault("FABRIC_DEVICE", "0")

from .devices import is_slow  # noqa: E402  it asks for the devices, with these variables

LONG = {
    "test_a_work_group_adds_the_query_heads_where_there_are_enough",
    "test_gradients_are_the_same_every_time",
    "test_gradients_of_any_size_keep_their_digits",
    "test_of_any_token_count",
    "test_rows_are_read_where_they_lie_without_shared_memory",
    "test_the_adjoint_is_the_same_every_time",
}
"""Tests whose kernels these compile for ten seconds and more."""

# A machine that is busy with something else is slow, not wrong.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

REAL_KERNELS = ("tests/parity/", "tests/schedules/")
"""Where the kernels are those of models; elsewhere they are a few lines."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On processors posing as devices, slow compilers, make all but a test's first case slow."""
    seen = set()
    for item in items:
        device = item.get_closest_marker("device")
        if device is None or not is_slow(*device.args):
            continue
        if not item.nodeid.startswith(REAL_KERNELS):
            continue
        test = item.nodeid.partition("[")[0]
        case = (test, *device.args)
        if case in seen or test.rpartition("::")[2] in LONG:
            item.add_marker(pytest.mark.slow)
        seen.add(case)
