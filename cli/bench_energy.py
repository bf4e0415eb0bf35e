"""The energy that the machine says it has used: RAPL of processors, NVML of NVIDIA's devices."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"


class Meter:
    """A counter of joules of everything that the processor's packages, or the device, do.

    Parameters
    ----------
    kind : str
        The kind of device: ``"cpu"``, ``"cuda"``, …
    reason : str or None
        Why nothing is to be counted.

    Attributes
    ----------
    source : str or None
        Where the numbers come from.
    reason : str or None
        Why there are none.
    """

    def __init__(self, kind: str, reason: str | None = None) -> None:
        self.source: str | None = None
        self.reason = reason
        self._read: Callable[[], float] | None = None
        if reason is not None:
            return
        try:
            self.source, self._read = _rapl() if kind == "cpu" else _nvml()
        except OSError as error:
            self.reason = str(error)

    def joules(self) -> float | None:
        """Return the joules so far, from any beginning; None where nothing counts them."""
        return None if self._read is None else self._read()


def _rapl() -> tuple[str, Callable[[], float]]:
    """Return Linux's counters of the processor's packages.

    Raises
    ------
    OSError
        With a few words, where there are none or they may not be read.
    """
    packages = []
    for folder in sorted(POWERCAP.glob("*rapl:*")):
        # intel-rapl:0 is a package, intel-rapl:0:0 a part of it.
        if folder.name.count(":") == 1:
            packages.append((folder / "energy_uj", folder / "max_energy_range_uj"))
    if not packages:
        raise OSError("this system has no energy counters of the processor (RAPL)")
    try:
        wraps = [float(most.read_text()) for _, most in packages]
        before = [float(file.read_text()) for file, _ in packages]
    except PermissionError:
        raise OSError(f"{packages[0][0]} may not be read by this user") from None
    total = [0.0]

    def read() -> float:
        for index, (file, _) in enumerate(packages):
            now = float(file.read_text())
            total[0] += (now - before[index]) % wraps[index]
            before[index] = now
        return total[0] / 1e6

    return "RAPL", read


def _nvml() -> tuple[str, Callable[[], float]]:
    """Return NVML's counter of the one NVIDIA device.

    Raises
    ------
    OSError
        With a few words, where there is no such device, or more than one.
    """
    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        raise OSError(f"there is no {NVML} to ask for the device's energy") from None
    if library.nvmlInit_v2():
        raise OSError("NVML finds no device")
    count, device = ctypes.c_uint(), ctypes.c_void_p()
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    if count.value != 1:
        raise OSError(f"NVML sees {count.value} devices and not which one computes")
    library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device))
    millijoules = ctypes.c_ulonglong()

    def read() -> float:
        library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules))
        return millijoules.value / 1e3

    if library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
        raise OSError("this device does not count its energy")
    return "NVML", read
