"""What TVM's C++ writes to the standard error, kept to itself for a moment."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STANDARD_ERROR = 2


@contextmanager
def unheard() -> Iterator[None]:
    """Let nothing be written to the standard error meanwhile.

    TVM warns of every ROCm target that it finds no ROCm here, which none of our code needs.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(STANDARD_ERROR), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, STANDARD_ERROR)
        yield
    finally:
        os.dup2(kept, STANDARD_ERROR)
        os.close(kept)
        os.close(nowhere)
