"""What is said where a bundle's weights are no longer what they were when it was opened."""

from __future__ import annotations

from ..targets import FabricError

_REMEDY = "Bring the bundle's disk back and continue with --resume: the last checkpoint is whole."


def missing(name: str, size: int, expected: int) -> FabricError:
    """Return the error of a weight file that was cut short or is gone."""
    return FabricError(
        f"The weights are gone: {name} has {size:,} bytes where it had {expected:,}.", _REMEDY
    )


def unreadable(name: str, error: OSError) -> FabricError:
    """Return the error of a weight file that the disk does not give."""
    reason = (error.strerror or str(error)).lower()
    return FabricError(f"The weights in {name} could not be read: {reason}.", _REMEDY)
