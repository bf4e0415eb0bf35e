"""Tests compile and run in one process, so the whole of TVM must be loaded before the runtime."""

import bitfabric.compiler  # noqa: F401
