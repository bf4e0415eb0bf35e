"""The program of the tuner's other process: ``python -m bitfabric.cli.tune_worker``."""

from __future__ import annotations

from typing import Any


def open_device(kind: str) -> Any:
    """Return a kind's device, the one that ``FABRIC_DEVICE`` names or the first."""
    import tvm

    if kind == "cpu":
        from ..runtime.library import load_runtime

        load_runtime()
        return tvm.cpu()
    from ..runtime.backends import load_backend
    from ..runtime.device import named_devices

    load_backend(kind)
    return tvm.runtime.device(kind, int(named_devices(kind)[0]["index"]))


def main() -> None:
    """Serve the tuner that started this process."""
    import os

    from ..runtime.library import processors

    os.environ.setdefault("TVM_NUM_THREADS", str(processors()))
    # All of TVM, before the runtime loads a part of it.
    os.environ["TVM_USE_RUNTIME_LIB"] = "0"
    from ..compiler.tuning import worker

    worker.run(open_device)


if __name__ == "__main__":
    main()
