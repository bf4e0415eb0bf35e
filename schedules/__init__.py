"""How each kernel is laid onto a kind of hardware: one rule a file, the first that fits wins."""

from tvm import tirx

from ..targets import Target
from .cpu import RULES as CPU_RULES
from .gpu import RULES as GPU_RULES
from .rule import KERNEL, PARAMETERS, Rule, apply_rules

FAMILIES: dict[str, list[Rule]] = {"cpu": CPU_RULES, "gpu": GPU_RULES}
"""The rules of each target family, in order."""


def schedule(function: tirx.PrimFunc, target: Target) -> tuple[str, tirx.PrimFunc]:
    """Lay one kernel onto a target; see :func:`apply_rules`."""
    return apply_rules(function, FAMILIES[target.family], target)


__all__ = ["FAMILIES", "KERNEL", "PARAMETERS", "Rule", "schedule"]
