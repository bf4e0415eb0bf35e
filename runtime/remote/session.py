"""One session on a device: a process of its own, from a client's handshake to its last word.

Its end frees everything that it held, also after a driver has crashed. It serves TVM's RPC whole:
modules can be loaded, run and timed by TVM's own client, which is how kernels are measured.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...targets import APIS, FabricError
from ...targets.ffi import tvm_ffi
from ..backends import backend_status, load_backend
from ..device_calls import device_error
from ..library import load_runtime
from .bundles import BundleStore
from .dialer import own_version
from .exchange import FUNCTIONS, PROTOCOL, TOTAL
from .message import PIECE, pack, unpack
from .service import Service

WAIT = 1.0
"""Seconds after which a caller hears that the work goes on."""


class Desk:
    """Takes one message at a time, has the service work on it, hands out the answer in pieces.

    The work is done in a thread of its own, so that the device can still say that it lives; always
    the same thread, because drivers and TVM's own threads belong to the thread that began.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._received = bytearray()
        self._work: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._done = threading.Event()
        self._answer = b""
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, piece: bytes) -> None:
        """Take a piece of a message that is not its last."""
        self._received += piece

    def call(self, piece: bytes) -> bytes:
        """Take the last piece; as `wait`."""
        message = bytes(self._received) + bytes(piece)
        self._received.clear()
        self._done.clear()
        self._work.put(message)
        return self.wait()

    def wait(self) -> bytes:
        """Return the answer's length and first piece; nothing where it is not ready in a second."""
        if not self._done.wait(WAIT):
            return b""
        return TOTAL.pack(len(self._answer)) + self._answer[:PIECE]

    def more(self, begin: int) -> bytes:
        """Return the answer's piece that begins at a byte."""
        return self._answer[begin : begin + PIECE]

    def _run(self) -> None:
        while True:
            message = self._work.get()
            try:
                self._answer = pack(*self._service.handle(*unpack(message)))
            except BaseException as error:
                self._answer = pack({"error": told(error)})
            self._done.set()


def told(error: BaseException) -> tuple[str, str]:
    """Return what a client is told of an error: cause and remedy; a bug is shown here as well."""
    if isinstance(error, FabricError):
        return error.cause, error.remedy
    traceback.print_exception(type(error), error, error.__traceback__)
    if isinstance(error, MemoryError):
        return "it has no memory left.", "Choose a smaller model, --context or --capacity."
    if isinstance(error, RuntimeError):
        found = device_error(error)
        return found.cause, found.remedy
    return f"{type(error).__name__}: {error}", "Its own terminal shows where; please report it."


def register(desk: Desk, name: str, folder: Path) -> None:
    """Make the service, and what TVM's own client asks for, known to TVM's RPC.

    Parameters
    ----------
    desk : Desk
    name : str
        The device's own.
    folder : pathlib.Path
        Where TVM's client puts files.
    """

    def hello() -> str:
        known = {"protocol": PROTOCOL, "bitfabric": own_version(), "name": name}
        return json.dumps(known)

    def load_module(file: str) -> Any:
        # A module for a device needs its backend; one for the processor does not miss it.
        for kind in APIS:
            if backend_status(kind)["library"] is not None:
                with suppress(FabricError):
                    load_backend(kind)
        return tvm_ffi.load_module(str(folder / file))

    functions: dict[str, Callable[..., Any]] = {
        FUNCTIONS + "hello": hello,
        FUNCTIONS + "put": desk.put,
        FUNCTIONS + "call": desk.call,
        FUNCTIONS + "wait": desk.wait,
        FUNCTIONS + "more": desk.more,
        "tvm.rpc.server.workpath": lambda file: str(folder / file),
        "tvm.rpc.server.load_module": load_module,
    }
    for function, work in functions.items():
        tvm_ffi.register_global_func(function, work, override=True)


def main(descriptor: int, name: str, folder: str) -> None:
    """Serve the client at a socket until it goes, or the server does."""

    # Ctrl-C at the server's terminal reaches us too; the server decides what it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    load_runtime()
    with tempfile.TemporaryDirectory(prefix="fabric-") as work:

        def follow() -> None:
            # The server holds the other end of our standard input, and nothing comes from there.
            sys.stdin.buffer.read()
            shutil.rmtree(work, ignore_errors=True)
            os._exit(0)

        threading.Thread(target=follow, daemon=True).start()
        register(Desk(Service(BundleStore(Path(folder)))), name, Path(work))
        try:
            tvm_ffi.get_global_func("rpc.ServerLoop")(descriptor)
        except Exception as error:
            print(f"session: {str(error).strip().splitlines()[0]}", file=sys.stderr)
    # Work that nobody waits for any more is not waited for either.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
