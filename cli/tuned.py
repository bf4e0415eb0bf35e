"""What `fabric compile` says of the records that it used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..targets import Target, automatic
from .output import Output

if TYPE_CHECKING:
    from ..compiler.tuning.applied import Tuning


def tuning_of(target: Target, output: Output) -> Tuning:
    """Return the records for a target; those of this machine's own device come first."""
    from ..compiler.tuning.applied import Tuning
    from .tuning_device import device_here

    # A named kind of device may be anybody's: only a processor, and …:auto, are at hand.
    at_hand = target.family == "cpu" or automatic(target.name) is not None
    tuning = Tuning.of(target, device_here(target) if at_hand else None)
    for note in tuning.notes:
        output.say(f"Note: {note}")
    return tuning


def report_tuning(bundle: Path, tuning: Tuning, output: Output) -> dict[str, int]:
    """Say how many kernels of a bundle were tuned, near or default, and where that was measured.

    Returns
    -------
    dict
        ``tuned``, ``near`` and ``default`` kernels.
    """
    from ..compiler.compile import TUNING
    from ..compiler.tuning.applied import devices_of, summary

    account = json.loads((bundle / TUNING).read_text(encoding="utf-8"))
    counts = summary(account)
    output.say(
        f"Kernels: {counts['tuned']} tuned, {counts['near']} by the records of a near shape, "
        f"{counts['default']} default."
    )
    here = tuning.device.title if tuning.device else "the device it is for"
    others = [name for name in devices_of(account) if name != here]
    if others:
        output.say(
            f"Note: records of {', '.join(others)} were used; tune on {here}: fabric tune MODEL"
        )
    return counts
