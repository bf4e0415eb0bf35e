"""What a target is: its TVM target, limits and the backend that runs it."""

from .cpu import cpu_flags, host_cpu, machine
from .errors import FabricError
from .host import host_options, host_triple, this_host
from .registry import get_target, list_targets
from .target import Limits, Target

__all__ = [
    "FabricError",
    "Limits",
    "Target",
    "cpu_flags",
    "get_target",
    "host_cpu",
    "host_options",
    "host_triple",
    "list_targets",
    "machine",
    "this_host",
]
