"""What a kernel is, whatever it is called: its computation, its parameters and its shapes."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from math import log2
from typing import Any

from tvm import tirx

from ...schedules import KERNEL, PARAMETERS

NEUTRAL = {"salt"}
"""Whole parameters that change values and no loop; so does every parameter that is a fraction."""
KEY_LENGTH = 16
_BLOCK = re.compile(r'T\.sblock\("(\w+)"\)')
_ATTRIBUTES = re.compile(r"^.*T\.func_attr\(.*$", re.MULTILINE)
_NUMBER = re.compile(r"\b\d+(\.\d+)?(e[+-]?\d+)?\b")


@dataclass(frozen=True)
class Signature:
    """The identity of a kernel before it is scheduled.

    Attributes
    ----------
    kernel : str
        The computation, by the name that the rules know it by.
    parameters : dict
        Its static parameters that shape loops: numbers, names and lists of them.
    buffers : list of [str, list]
        Dtype and extents of each argument; a variable extent is ``"a"``, ``"b"`` by appearance.
    """

    kernel: str
    parameters: dict[str, Any]
    buffers: list[list[Any]]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"kernel": self.kernel, "parameters": self.parameters, "buffers": self.buffers}

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits that stand for the kernel with these shapes."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]

    @property
    def form(self) -> str:
        """The kernel without its sizes: kernels of one form ask for the same decisions."""
        return json.dumps(_without_sizes(self.to_json()), sort_keys=True)

    @property
    def sizes(self) -> list[int]:
        """Every size, in one order for all kernels of the form."""
        found: list[int] = []
        _collect(self.to_json(), found)
        return found

    @property
    def title(self) -> str:
        """What a person calls it: ``bitlinear 128x768 -> 128x2304``."""
        first, last = ("x".join(str(e) for e in self.buffers[i][1]) for i in (0, -1))
        return f"{self.kernel} {first} -> {last}"


def signature_of(function: tirx.PrimFunc) -> Signature:
    """Return the signature of a kernel of ours, or of operators that TVM lowered."""
    attributes = function.attrs or {}
    parameters = dict(attributes[PARAMETERS].items()) if PARAMETERS in attributes else {}
    if KERNEL in attributes:
        name = str(attributes[KERNEL])
    else:
        name, parameters["program"] = _program(function)
    plain = {str(name): _plain(value) for name, value in parameters.items()}
    kept = {n: v for n, v in plain.items() if not isinstance(v, float) and n not in NEUTRAL}
    names: dict[Any, str] = {}
    buffers = [
        [str(p.dtype), [_extent(extent, names) for extent in p.shape]] for p in function.params
    ]
    return Signature(name, kept, buffers)


def _program(function: tirx.PrimFunc) -> tuple[str, str]:
    """Return what operators do, by the names of TVM's blocks, and a hash of it without numbers."""
    text = _ATTRIBUTES.sub("", function.without_attr("global_symbol").script(show_meta=False))
    blocks = [name.removeprefix("T_") for name in _BLOCK.findall(text) if name != "root"]
    for index, parameter in enumerate(function.params):
        text = re.sub(rf"\b{re.escape(parameter.name)}\b", f"argument{index}", text)
    digest = hashlib.sha256(_NUMBER.sub("0", text).encode()).hexdigest()
    return "+".join(blocks) or "program", digest[:KEY_LENGTH]


def distance(one: Signature, other: Signature) -> float | None:
    """Return how far the shapes of two kernels are apart, in doublings; None for other forms."""
    if one.form != other.form:
        return None
    pairs = zip(one.sizes, other.sizes, strict=True)
    return sum(abs(log2((a + 1) / (b + 1))) for a, b in pairs)


def _plain(value: Any) -> Any:
    if isinstance(value, (str, bool, int, float)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, tirx.IntImm):
        return int(value.value)
    if isinstance(value, tirx.FloatImm):
        return float(value.value)
    return [_plain(item) for item in value]


def _extent(extent: Any, names: dict[Any, str]) -> int | str:
    if isinstance(extent, (int, tirx.IntImm)):
        return int(extent)
    name = str(extent)
    return names.setdefault(name, "abcdefghijklmnop"[len(names)])


def _without_sizes(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_sizes(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_sizes(item) for item in value]
    return 0 if isinstance(value, int) else value


def _collect(value: Any, found: list[int]) -> None:
    if isinstance(value, dict):
        for name in sorted(value):
            _collect(value[name], found)
    elif isinstance(value, list):
        for item in value:
            _collect(item, found)
    elif isinstance(value, int):
        found.append(value)
