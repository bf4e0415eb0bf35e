"""The one kind of error a person meets: what went wrong, and what to do about it."""

from __future__ import annotations


class FabricError(Exception):
    """A failure with its cause and its remedy, each one sentence.

    Parameters
    ----------
    cause : str
        What is wrong, naming the file, tensor, option or value.
    remedy : str
        What the person can do now.
    """

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}\n{remedy}")
        self.cause = cause
        self.remedy = remedy
