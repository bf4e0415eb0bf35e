"""The error of code that LLVM and LLD can't make."""

from __future__ import annotations

from tvm_ffi.error import register_error

from ..generator_error import GeneratorError


@register_error
class RocmCompilerError(GeneratorError):
    """A linker that is missing, or a kernel that LLVM refuses."""


def failure(cause: str, remedy: str) -> RocmCompilerError:
    """Return the error of a cause and a remedy."""
    return RocmCompilerError(f"{cause}\n{remedy}")
