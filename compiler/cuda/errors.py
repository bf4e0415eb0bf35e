"""The error of code that NVIDIA's compilers can't make."""

from __future__ import annotations

from tvm_ffi.error import register_error

from ..generator_error import GeneratorError


@register_error
class CudaCompilerError(GeneratorError):
    """A compiler that is missing, or that refuses a kernel."""


def failure(cause: str, remedy: str) -> CudaCompilerError:
    """Return the error of a cause and a remedy."""
    return CudaCompilerError(f"{cause}\n{remedy}")
