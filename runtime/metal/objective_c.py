"""Messages to Objective-C's objects, as far as Metal's description of its devices takes them."""

from __future__ import annotations

import ctypes
from typing import Any

OBJECTIVE_C = "/usr/lib/libobjc.A.dylib"
METAL = "/System/Library/Frameworks/Metal.framework/Metal"


class Messenger:
    """Sends messages; the 64-bit Arm's way, where one function takes all of them.

    Raises
    ------
    OSError
        If the system has no Objective-C or no Metal.
    """

    def __init__(self) -> None:
        self._objective_c = ctypes.CDLL(OBJECTIVE_C)
        self._objective_c.sel_registerName.restype = ctypes.c_void_p
        self._metal = ctypes.CDLL(METAL)

    def __call__(self, receiver: int, name: str, *arguments: int, result: Any = None) -> Any:
        """Send a message of integers.

        Parameters
        ----------
        receiver : int
            The object's address.
        name : str
            The message's, with a colon for each argument.
        *arguments : int
            Machine words.
        result : ctypes type, optional
            Of what comes back; a machine word where it is left out.
        """
        selector = self._objective_c.sel_registerName(name.encode())
        words = (ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_size_t] * len(arguments))
        address = ctypes.cast(self._objective_c.objc_msgSend, ctypes.c_void_p).value or 0
        send = ctypes.CFUNCTYPE(result or ctypes.c_size_t, *words)(address)
        return send(receiver, selector, *arguments)

    def devices(self) -> list[int]:
        """Return the addresses of all devices of this Mac, in Metal's order, which is TVM's."""
        self._metal.MTLCopyAllDevices.restype = ctypes.c_void_p
        found = self._metal.MTLCopyAllDevices()
        return [self(found, "objectAtIndex:", i) for i in range(self(found, "count"))]

    def text(self, receiver: int, name: str) -> str:
        """Return a text that an object has."""
        return self(self(receiver, name), "UTF8String", result=ctypes.c_char_p).decode()
