"""Matrix units: which registers hold which elements, and LLVM's instructions.

A fragment of a factor is a vector of words in each thread, of elements that lie side by side along
the depth in one row of the left factor or one column of the right; a sum's is a vector of one
column's. The layouts are those of AMD's "Instruction Set Architecture" of each generation (MFMA,
CDNA 1 to 3; WMMA, RDNA 3 and 4), for thread l and place j::

    units       factors: line l % 16 and depth   sums: column l % 16 and row
    MFMA        n (l / 16) + j                   4 (l / 16) + j
    WMMA 11     j, in both halves of the wave    2 j + l / 16
    WMMA 12     8 (l / 16) + j                   8 (l / 16) + j

n is 4, or 8 for the bytes of gfx942.
"""

from __future__ import annotations

from dataclasses import dataclass

from .functions import ATTRIBUTES, HEAD

HALF, BYTE = "float16", "int8"
BYTES = {HALF: 2, BYTE: 1}
"""Of an element."""
SUMS = {HALF: "float32", BYTE: "int32"}
"""The dtype of the sums."""
LINES = 16
"""Rows of a left factor, and columns of a right one."""


@dataclass(frozen=True)
class Unit:
    """The registers of one product.

    Attributes
    ----------
    factors : str
        Dtype: ``"float16"`` or ``"int8"``.
    instruction : str
        LLVM's intrinsic.
    operand : str
        LLVM's type of a factor in a thread.
    depth : int
        Elements of a factor in a thread.
    split : bool
        Whether each 16 threads of a wave hold another depth; else all hold the same.
    sums : int
        Elements of a sum in a thread.
    apart, step : int
        Rows from a sum's element of one thread to that of the thread 16 further, and from one of
        its elements to the next.
    flags : tuple of str
        What stands before the left factor, before the right one, and after the sums.
    """

    factors: str
    instruction: str
    operand: str
    depth: int
    split: bool
    sums: int
    apart: int
    step: int
    flags: tuple[str, str, str]

    @property
    def words(self) -> int:
        """The words of a factor in a thread."""
        return self.depth * BYTES[self.factors] // 4

    @property
    def sum_type(self) -> str:
        """TIR's dtype of a sum in a thread."""
        return f"{SUMS[self.factors]}x{self.sums}"

    @property
    def factor_type(self) -> str:
        """The same of a factor."""
        return "int32" if self.words == 1 else f"int32x{self.words}"

    def elements(self, wave: int) -> int:
        """Return the elements of a factor's fragment."""
        return LINES * self.depth * (wave // LINES if self.split else 1)


def _mfma(factors: str, name: str, operand: str, depth: int) -> Unit:
    instruction, flags = f"llvm.amdgcn.mfma.{name}", ("", "", ", i32 0, i32 0, i32 0")
    return Unit(factors, instruction, operand, depth, True, 4, apart=4, step=1, flags=flags)


def _wmma(factors: str, depth: int, split: bool) -> Unit:
    if factors == HALF:
        name, operand = f"f32.16x16x16.f16.v8f32.v{depth}f16", f"<{depth} x half>"
        flags = ("", "", "")
    else:
        name, operand = f"i32.16x16x16.iu8.v8i32.v{depth // 4}i32", f"<{depth // 4} x i32>"
        # Both factors are signed, and the sums are not saturated.
        flags = ("i1 true, ", "i1 true, ", ", i1 false")
    apart, step = (8, 1) if split else (1, 2)
    instruction = f"llvm.amdgcn.wmma.{name}"
    return Unit(factors, instruction, operand, depth, split, 8, apart, step, flags)


def units(architecture: str) -> dict[str, Unit]:
    """Return an architecture's units by the dtype of the factors."""
    if architecture in ("gfx908", "gfx90a"):
        found = [_mfma(BYTE, "i32.16x16x16i8", "i32", 4)]
    elif architecture == "gfx942":
        found = [_mfma(BYTE, "i32.16x16x32.i8", "i64", 8)]
    elif architecture.startswith("gfx11"):
        found = [_wmma(BYTE, 16, False), _wmma(HALF, 16, False)]
    elif architecture.startswith("gfx12"):
        found = [_wmma(BYTE, 8, True), _wmma(HALF, 8, True)]
    else:
        return {}
    if len(found) == 1:
        found.append(_mfma(HALF, "f32.16x16x16f16", "<4 x half>", 4))
    return {unit.factors: unit for unit in found}


def matrix_functions(architecture: str) -> str:
    """Return the functions ``fabric_multiply_DTYPE(left, right, sums)`` of an architecture."""
    return "\n".join(_multiply(unit) for unit in units(architecture).values())


def _multiply(unit: Unit) -> str:
    factor = "i32" if unit.words == 1 else f"<{unit.words} x i32>"
    total = f"<{unit.sums} x {'float' if unit.factors == HALF else 'i32'}>"
    before, between, after = unit.flags
    operand, immediate = unit.operand, " immarg"
    declared = [flag.split()[0] + immediate for flag in (before,) if flag] + [operand]
    declared += [flag.split()[0] + immediate for flag in (between,) if flag] + [operand, total]
    declared += [flag.split()[0] + immediate for flag in after.split(", ")[1:]]
    return (
        f"declare {total} @{unit.instruction}({', '.join(declared)})\n"
        f"define {HEAD} {total} @fabric_multiply_{unit.factors}"
        f"({factor} %a, {factor} %b, {total} %c) {ATTRIBUTES} {{\n"
        f"  %left = bitcast {factor} %a to {operand}\n"
        f"  %right = bitcast {factor} %b to {operand}\n"
        f"  %d = call {total} @{unit.instruction}({before}{operand} %left, {between}{operand} "
        f"%right, {total} %c{after})\n"
        f"  ret {total} %d\n}}\n"
    )
