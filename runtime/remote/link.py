"""One connection to a device: TVM's RPC client, with a time limit on everything.

TVM's client opens its own socket and waits on it for as long as it takes, for ever if need be. So
it is given a socket of this process, and two threads pass the bytes on to the device: closing that
socket ends whatever TVM waits for.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

from ...targets.ffi import tvm_ffi
from ..library import load_runtime
from . import wire
from .errors import ConnectionLostError, DeviceStuckError, RemoteError

T = TypeVar("T")
_BUFFER = 1 << 18


class Link:
    """A TVM RPC session with a device that has accepted our key.

    Parameters
    ----------
    outside : socket.socket
        The connection to the device, after the handshake.
    name : str
        The device's ``host:port``.
    seconds : float
        How long an answer may take.

    Attributes
    ----------
    where : str
        The device's ``host:port``; `name` may become more than that.

    Raises
    ------
    ConnectionLostError, DeviceStuckError
        If the session does not come about.
    RemoteError
        If the device runs another version of TVM.
    """

    def __init__(self, outside: socket.socket, name: str, seconds: float) -> None:
        load_runtime()
        self.name, self.where, self._seconds = name, name, seconds
        self._sockets = [outside]
        self._jobs: queue.SimpleQueue[tuple[Future, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._functions: dict[str, Any] = {}
        self._session: Any = None
        self._closed = False
        threading.Thread(target=self._work, daemon=True).start()
        try:
            self._open(outside)
        except BaseException:
            self.close()
            raise

    def _open(self, outside: socket.socket) -> None:
        """Let TVM's client open its session through a relay."""
        secret = secrets.token_hex(16)
        with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
            listener.settimeout(self._seconds)
            port = listener.getsockname()[1]
            threading.Thread(
                target=self._relay, args=(listener, outside, secret), daemon=True
            ).start()
            self._do(lambda: self._connect(port, secret), self._seconds)

    def _connect(self, port: int, secret: str) -> None:
        connect = tvm_ffi.get_global_func("rpc.Connect")
        try:
            self._session = connect("127.0.0.1", port, secret, False)
        except Exception as error:
            if "protocol version mismatch" in str(error):
                raise RemoteError(
                    f"{self.name} runs another version of TVM.",
                    "Install the same version of bitfabric here and on the device.",
                ) from error
            raise

    def _relay(self, listener: socket.socket, outside: socket.socket, secret: str) -> None:
        """Accept TVM's client, and nobody else who may be on this machine; pass all bytes on."""
        try:
            inside, _ = listener.accept()
        except OSError:
            return
        self._sockets.append(inside)
        try:
            inside.settimeout(self._seconds)
            if self._closed or wire.receive_word(inside) != wire.MAGIC:
                raise ConnectionAbortedError
            if wire.receive_text(inside) != f"client:{secret}":
                raise ConnectionAbortedError
            wire.send_greeting(inside, wire.MAGIC, "server:")
            for sock in (inside, outside):
                sock.settimeout(None)
        except OSError:
            self.close()
            return
        threading.Thread(target=self._pump, args=(outside, inside), daemon=True).start()
        self._pump(inside, outside)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        view = memoryview(bytearray(_BUFFER))
        with contextlib.suppress(OSError):
            while count := source.recv_into(view):
                sink.sendall(view[:count])
        # The other direction ends as well: half a connection is of no use.
        wire.shut(source)
        wire.shut(sink)

    def _work(self) -> None:
        """Make every call to TVM's client, one after the other, in a thread of their own."""
        while (job := self._jobs.get()) is not None:
            future, work = job
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            del job, future, work
        self._functions.clear()
        self._session = None

    def _do(self, work: Callable[[], T], seconds: float) -> T:
        """Let the thread do something; a failure of any kind ends the connection."""
        if self._closed:
            raise ConnectionLostError(f"the connection to {self.name} is closed")
        future: Future[T] = Future()
        self._jobs.put((future, work))
        try:
            return future.result(seconds)
        except FutureTimeoutError as error:
            self.close()
            raise DeviceStuckError(f"{self.name} did not answer for {seconds:g} s") from error
        except (AttributeError, RemoteError):
            self.close()
            raise
        except Exception as error:
            self.close()
            raise ConnectionLostError(f"{self.name} closed the connection") from error
        except BaseException:
            # Ctrl-C in the middle of an answer: what is left of it could not be told from the next.
            self.close()
            raise

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a global function of the device with numbers, texts and bytes.

        Raises
        ------
        ConnectionLostError, DeviceStuckError
            If the connection fails, or there is no answer in time. The link is closed then.
        AttributeError
            If the device has no such function.
        """

        def work() -> Any:
            if function not in self._functions:
                self._functions[function] = self._session[function]
            return self._functions[function](*arguments)

        return self._do(work, self._seconds)

    def close(self) -> None:
        """End the connection and whatever waits for it; the device ends the session."""
        self._closed = True
        for sock in self._sockets:
            wire.shut(sock)
        self._jobs.put(None)
