"""Metal, by TVM's own runtime library for it, which its package for macOS brings along.

`libraries` finds and loads it, `devices` asks Metal for the devices by way of `objective_c`, and
`functions` gives the rest of what `memory_space` asks of a backend.
"""

from .functions import register
from .libraries import KIND, library, load

__all__ = ["KIND", "library", "load", "register"]
