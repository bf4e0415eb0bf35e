"""Runs the functions that ROCm's kernels are linked with, for all threads of a wave at once.

A value is an array with an element for each thread. The exchanges are those of AMD's "Instruction
Set Architecture": DPP's controls, ``v_permlanex16``, ``ds_swizzle`` and ``ds_bpermute``, where a
thread that does not run hands over nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

Values = np.ndarray
_DEFINE = re.compile(r"define [\w ]*? (?:float|i32|void) @(\w+)\(([^)]*)\)[^{]*\{(.*?)\n\}", re.S)
_LINE = re.compile(r"\s*%(\w+) = (\w+) (.*)")
_CALL = re.compile(r"(?:\w+) @(?:llvm\.)?([\w.]+)\((.*)\)")


class Wave:
    """A wave's threads.

    Parameters
    ----------
    text : str
        Functions in LLVM's language.
    size : int
        Threads of a wave.
    running : numpy.ndarray
        Which of them run.
    """

    def __init__(self, text: str, size: int, running: Values) -> None:
        self.functions = {name: (taken, body) for name, taken, body in _DEFINE.findall(text)}
        self.size, self.running, self.lanes = size, running, np.arange(size)

    def call(self, name: str, *arguments: Values) -> Values:
        """Return a function's result in each thread."""
        taken, body = self.functions[name]
        names = re.findall(r"%(\w+)", taken)
        known = dict(zip(names, arguments, strict=True))
        for line in body.strip().splitlines():
            if (done := re.match(r"\s*ret \w+ (\S+)", line)) is not None:
                return self._operand(done[1], known)
            match = _LINE.fullmatch(line)
            assert match is not None, line
            known[match[1]] = self._value(match[2], match[3], known)
        raise AssertionError(f"{name} does not return")

    def _operand(self, text: str, known: dict[str, Values]) -> Values:
        if text.startswith("%"):
            return known[text[1:]]
        if text in ("true", "false"):
            return np.full(self.size, text == "true")
        if "." in text:
            return np.full(self.size, float(text), np.float32)
        return np.full(self.size, int(text), np.int64)

    def _value(self, operation: str, rest: str, known: dict[str, Values]) -> Values:
        if operation == "call":
            match = _CALL.fullmatch(rest)
            assert match is not None, rest
            values = [self._operand(each.split()[-1], known) for each in match[2].split(", ")]
            return self._called(match[1], values)
        if operation == "select":
            chosen, yes, no = (self._operand(p.split()[-1], known) for p in rest.split(", "))
            return np.where(chosen, yes, no)
        if operation in ("bitcast", "zext", "trunc", "fptosi"):
            source, target = re.fullmatch(r"\w+ (\S+) to (\w+)", rest).groups()  # type: ignore[union-attr]
            return _converted(operation, self._operand(source, known), target)
        words = re.fullmatch(r"\w+ (\S+), (\S+)", rest)
        assert words is not None, rest
        return _OPERATIONS[operation](*(self._operand(word, known) for word in words.groups()))

    def _called(self, name: str, values: list[Values]) -> Values:
        if name == "amdgcn.ballot.i64":
            bits = sum(1 << int(lane) for lane in self.lanes[self.running])
            return np.full(self.size, bits, object)
        if name.startswith("amdgcn.mbcnt"):
            low, half = np.minimum(self.lanes, 32), name.endswith("lo")
            return values[1] + (low if half else self.lanes - low)
        if name == "amdgcn.update.dpp.i32":
            return self._from(self._dpp(int(values[2][0])), values[1], values[0])
        if name == "amdgcn.permlanex16.i32":
            assert (values[2][0], values[3][0] & 0xFFFFFFFF) == (0x76543210, 0xFEDCBA98)
            return self._from(self.lanes ^ 16, values[1], values[0])
        if name == "amdgcn.ds.swizzle":
            assert int(values[1][0]) == 0x401F
            return self._from(self.lanes ^ 16, values[0], np.zeros_like(values[0]))
        if name == "amdgcn.ds.bpermute":
            places = values[0].astype(np.int64) // 4 % self.size
            return self._from(places, values[1], np.zeros_like(values[1]))
        return _OPERATIONS[name](*values)

    def _from(self, places: Values, values: Values, otherwise: Values) -> Values:
        return np.where(self.running[places], values[places], otherwise)

    def _dpp(self, control: int) -> Values:
        if control < 0x100:
            inside = self.lanes % 4
            chosen = np.array([control >> 2 * i & 3 for i in range(4)])
            return self.lanes - inside + chosen[inside]
        width = {0x140: 16, 0x141: 8}[control]
        return self.lanes - self.lanes % width + width - 1 - self.lanes % width


def _converted(operation: str, value: Values, target: str) -> Values:
    if operation == "bitcast":
        kind = {"float": np.float32, "i32": np.int32}[target]
        word = value if value.dtype == np.float32 else value.astype(np.int32)
        return word.view(kind)
    if target == "i1":
        return (value & 1).astype(bool)
    return value.astype(np.int64)


_OPERATIONS: dict[str, Callable[..., Values]] = {
    "fadd": lambda a, b: a + b,
    "add": lambda a, b: (a + b).astype(np.int32),
    "and": lambda a, b: a & b,
    "xor": lambda a, b: a ^ b,
    "shl": lambda a, b: a << b,
    "lshr": lambda a, b: a >> b,
    "rint.f32": np.rint,
    "maxnum.f32": np.fmax,
    "minnum.f32": np.fmin,
    "smax.i32": np.maximum,
}
