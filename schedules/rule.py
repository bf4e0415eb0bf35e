"""A schedule rule: how one kernel is laid onto one kind of hardware."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from ..targets import FabricError, Target

Apply = Callable[[tirx.PrimFunc, dict[str, Any], Target], "tirx.PrimFunc | None"]

KERNEL = "fabric.kernel"
PARAMETERS = "fabric.params"


class Rule:
    """One kernel on one family of targets.

    Attributes
    ----------
    kernel : str
        The name that `models/kernels` gave the computation.
    apply : callable
        Given the PrimFunc, its static parameters and the target, returns a PrimFunc of the same
        signature laid out for the target, or None where the rule does not fit.
    """

    def __init__(self, kernel: str, apply: Apply) -> None:
        self.kernel, self.apply = kernel, apply


def apply_rules(
    function: tirx.PrimFunc, rules: list[Rule], target: Target
) -> tuple[str, tirx.PrimFunc]:
    """Lay a kernel out by the first rule that fits.

    Returns
    -------
    tuple
        The name of the rule's module, and the PrimFunc, marked ``tirx.is_scheduled``.

    Raises
    ------
    FabricError
        If no rule fits: an unscheduled kernel would be wrong on a GPU and slow elsewhere.
    """
    attributes = function.attrs or {}
    kernel = str(attributes[KERNEL]) if KERNEL in attributes else ""
    parameters = dict(attributes[PARAMETERS].items()) if PARAMETERS in attributes else {}
    for rule in rules:
        if rule.kernel not in ("*", kernel):
            continue
        scheduled = rule.apply(function, parameters, target)
        if scheduled is not None:
            for name in (KERNEL, PARAMETERS, "global_symbol"):
                if function.attrs and name in function.attrs:
                    scheduled = scheduled.with_attr(name, function.attrs[name])
            return rule.apply.__module__, scheduled.with_attr("tirx.is_scheduled", True)
    raise FabricError(
        f"No schedule lays the kernel {kernel or '(unnamed)'!r} onto the target {target.name}.",
        "Add a rule for it in schedules/, or choose another target.",
    )
