"""The process that compiles kernels for one architecture.

``python -m bitfabric.compiler.rocm.worker ARCHITECTURE FOLDER`` reads ``module.json`` there and
writes ``head``, ``code`` and ``assembly``; see :func:`generate`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tvm

from ...targets import FabricError
from .generate import generate

FAILED = 2
"""The status where the last line of the standard error is the cause."""


def main(architecture: str, place: str) -> int:
    """Compile; returns the process's status."""
    folder = Path(place)
    module = tvm.ir.load_json((folder / "module.json").read_text(encoding="utf-8"))
    try:
        head, code, text = generate(module, architecture, folder)
    except FabricError as error:
        print(error.cause, file=sys.stderr)
        return FAILED
    (folder / "head").write_bytes(head)
    (folder / "code").write_bytes(code)
    (folder / "assembly").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
