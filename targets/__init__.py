"""What a target is: its TVM target, limits and the backend that runs it."""

from .cpu import cpu_flags, host_cpu, machine, processor
from .device_api import DEVICE_VARIABLE, DeviceApi
from .errors import FabricError
from .host import host_options, host_triple, this_host
from .registry import APIS, automatic, get_target, list_targets
from .target import Limits, MatrixUnit, Target

__all__ = [
    "APIS",
    "DEVICE_VARIABLE",
    "DeviceApi",
    "FabricError",
    "Limits",
    "MatrixUnit",
    "Target",
    "automatic",
    "cpu_flags",
    "get_target",
    "host_cpu",
    "host_options",
    "host_triple",
    "list_targets",
    "machine",
    "processor",
    "this_host",
]
