"""The error of a kernel that can't run on a device of Apple's."""

from __future__ import annotations

from tvm_ffi.error import register_error

from ..generator_error import GeneratorError


@register_error
class MetalCodeError(GeneratorError):
    """A kernel that is beyond Metal's limits, or names what MSL has no word for."""


def failure(cause: str, remedy: str) -> MetalCodeError:
    """Return the error of a cause and a remedy."""
    return MetalCodeError(f"{cause}\n{remedy}")
