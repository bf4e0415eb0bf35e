"""The program of the tuner's other process: ``python -m bitfabric.cli.tune_worker [rpc://…]``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..compiler.tuning.arguments import Argument
    from ..compiler.tuning.worker import Runner
    from ..targets import Target


class Here:
    """Runs kernels on this machine, in this process."""

    def __init__(self, target: Target) -> None:
        from ..runtime.kernel_bench import KernelBench

        self.notes: list[str] = []
        self._bench = KernelBench(target.device)

    def take(self, kernel: Any, arguments: Sequence[Argument], limit: float) -> dict[str, Any]:
        """Run a default schedule; whoever asked ends this process after `limit` seconds."""
        return self._bench.take(kernel["main"], arguments)

    def compare(self, kernel: Any, seconds: float, repeats: int, limit: float) -> dict[str, Any]:
        """Run a candidate beside it."""
        return self._bench.compare(kernel["main"], seconds, repeats)


class Elsewhere:
    """Links kernels here and has a device elsewhere run them."""

    def __init__(self, target: Target, address: str) -> None:
        from ..runtime.remote.address import parse_address
        from ..runtime.remote.kernels import RemoteKernelBench

        self.notes: list[str] = []
        self._target = target
        self._bench = RemoteKernelBench(
            target.device, parse_address(address), lambda text: self.notes.append(text)
        )

    def take(self, kernel: Any, arguments: Sequence[Argument], limit: float) -> dict[str, Any]:
        """Run a default schedule there."""
        return self._asked(self._bench.take, kernel, arguments, limit)

    def compare(self, kernel: Any, seconds: float, repeats: int, limit: float) -> dict[str, Any]:
        """Run a candidate beside it there."""
        return self._asked(self._bench.compare, kernel, seconds, repeats, limit)

    def _asked(self, ask: Any, kernel: Any, *values: Any) -> dict[str, Any]:
        """Send a kernel there as a library.

        Raises
        ------
        Failure
            If no device is left.
        """
        import numpy as np

        from ..compiler.link import link
        from ..compiler.tuning.worker import Failure
        from ..runtime.remote.errors import RemoteError

        with tempfile.TemporaryDirectory(prefix="fabric-") as folder:
            path = Path(folder) / "kernel.so"
            link(kernel, path, self._target)
            library = np.fromfile(path, np.uint8)
        try:
            return ask(library, *values)
        except RemoteError as error:
            raise Failure("lost", f"{error.cause}\n{error.remedy}") from error


def main(address: str | None = None) -> None:
    """Serve the tuner that started this process."""
    import os

    from ..runtime.library import prepare_threads

    prepare_threads()
    # All of TVM, before the runtime loads a part of it.
    os.environ["TVM_USE_RUNTIME_LIB"] = "0"
    from ..compiler.tuning import worker

    def opened(target: Target) -> Runner:
        return Here(target) if address is None else Elsewhere(target, address)

    worker.run(opened)


if __name__ == "__main__":
    main(*sys.argv[1:])
