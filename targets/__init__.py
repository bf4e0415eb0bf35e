"""What a target is: its TVM target, limits and the backend that runs it."""

from .cpu import cpu_flags, host_cpu, machine
from .errors import FabricError
from .registry import get_target, list_targets
from .target import Target

__all__ = [
    "FabricError",
    "Target",
    "cpu_flags",
    "get_target",
    "host_cpu",
    "list_targets",
    "machine",
]
