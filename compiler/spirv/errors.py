"""The error of a kernel that cannot become SPIR-V."""

from __future__ import annotations

from collections.abc import Callable

from tvm_ffi.error import register_error

from ..generator_error import GeneratorError

REMEDY = (
    "Compile for another target (fabric targets lists them), or write the kernel's rule without it."
)


@register_error
class UnsupportedKernel(GeneratorError):
    """A kernel that uses what there is no code for, or what the target lacks."""


Refuse = Callable[[str], UnsupportedKernel]
"""Makes a kernel's error of what follows "uses"."""


def refusal(kernel: str) -> Refuse:
    """Return the maker of a kernel's errors."""

    def refuse(what: str) -> UnsupportedKernel:
        cause = f"The kernel {kernel} uses {what}, which cannot become SPIR-V for this target."
        return UnsupportedKernel(f"{cause}\n{REMEDY}")

    return refuse
