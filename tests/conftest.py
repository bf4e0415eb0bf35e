"""What every test shares.

Tests compile and run in one process, so the whole of TVM must be loaded before the runtime, which
would load a part of it. Compiled modules are kept between runs, away from the user's own cache.
"""

import os
from pathlib import Path

import bitfabric.compiler  # noqa: F401

CACHE = Path(__file__).parent.parent / ".pytest_cache" / "modules"
os.environ.setdefault("BITFABRIC_CACHE", str(CACHE))
