"""Calls of a device's functions: recorded where they repeat, and their failures as sentences."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..targets import FabricError


class Repeated:
    """A function of a device, recorded at its second call: the first compiles its kernels.

    The result is the same tensors each time, with new values.
    """

    def __init__(
        self,
        function: Callable[[], Any],
        recorder: Callable[..., Any],
        refusal: Callable[[], str] = str,
    ) -> None:
        self._function, self._recorder, self._refusal = function, recorder, refusal
        self._replay: Callable[[bool], str] | None = None
        self._calls, self._result = 0, None

    def __call__(self) -> Any:
        """Return what the function gives; a device's failure is a `FabricError`."""
        try:
            return self._called()
        except RuntimeError as error:
            raise device_error(error, self._refusal()) from error

    def _called(self) -> Any:
        self._calls += 1
        if self._replay is not None:
            self._replay(False)
        elif self._calls == 2:
            self._replay = self._recorder(self._function, self._take)
        else:
            return self._function()
        return self._result

    def _take(self, result: Any) -> None:
        self._result = result

    def times(self) -> list[tuple[str, float, int]]:
        """Call the function; return each launch's kernel, its seconds and its bytes.

        The bytes are those of the memory that it was given, 0 where the backend does not tell.
        Empty where the function could not be recorded.
        """
        for _ in range(2):
            self()
        found = json.loads(self._replay(True)) if self._replay is not None else []
        return [(name, 1e-9 * nanoseconds, sum(rest)) for name, nanoseconds, *rest in found]


def device_error(error: Exception, refusal: str = "") -> FabricError:
    """Return what a native backend's error, or its allocator's refusal, means for a person."""
    message = str(error).strip().splitlines()[0] if str(error).strip() else "unknown error"
    message = refusal or message
    if "memory budget" in message:
        remedy = "Raise --memory-budget, or compile the bundle again for this one."
    elif "out of memory" in message:
        remedy = "Lower --micro-batch or --context, or choose a smaller model."
    elif "device lost" in message:
        remedy = "The last checkpoint is whole: continue with --resume. `fabric doctor` checks it."
    else:
        remedy = "See `fabric doctor`."
    return FabricError(message if message.endswith(".") else f"{message}.", remedy)
