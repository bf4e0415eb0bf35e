"""How the learning rate moves over a training."""

from __future__ import annotations

import math

SCHEDULERS = ("constant", "linear", "cosine")


def learning_rate_at(
    step: int, *, total: int, peak: float, scheduler: str = "cosine", warmup: int = 0
) -> float:
    """Give the learning rate of one optimizer step.

    It rises in equal parts over the first `warmup` steps, the first of which already learns, and
    then stays (`constant`), falls in a straight line (`linear`) or along half a cosine (`cosine`,
    Loshchilov & Hutter 2017, without restarts) so that it would be 0 one step after the last.

    Parameters
    ----------
    step : int
        From 1 to `total`.
    total : int
        Steps of the whole training.
    peak : float
        The rate at the end of the warm-up.
    scheduler : str
        One of `SCHEDULERS`.
    warmup : int
        Steps of the warm-up.

    Returns
    -------
    float
    """
    done = step - 1
    if done < warmup:
        return peak * step / warmup
    progress = (done - warmup) / max(1, total - warmup)
    if scheduler == "constant":
        return peak
    if scheduler == "linear":
        return peak * (1.0 - progress)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_steps(ratio: float, total: int) -> int:
    """Give the number of warm-up steps, `ratio` (0 to 1) of `total`, rounded."""
    return round(ratio * total)
