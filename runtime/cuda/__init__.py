"""CUDA, by TVM's own runtime library for it: what the other kinds of devices have a backend for.

`libraries` finds and loads it, `devices` asks the driver for the devices, and `functions` gives the
rest of what `memory_space` asks of a backend, of which `graphs` replays kernels that stay the same.
"""

from .functions import register
from .libraries import KIND, library, load

__all__ = ["KIND", "library", "load", "register"]
