"""The error of a generator of device code, which passes through TVM's C++ on its way."""

from __future__ import annotations

from ..targets import FabricError


class GeneratorError(FabricError):
    """Code that cannot be made.

    TVM's C++ calls the generators and hands their errors on by their class and text alone; so each
    subclass is registered with it.

    Parameters
    ----------
    text : str
        The cause and the remedy, a line each.
    """

    def __init__(self, text: str) -> None:
        cause, _, remedy = text.partition("\n")
        super().__init__(cause, remedy)
