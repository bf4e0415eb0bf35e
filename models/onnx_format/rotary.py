"""The base of rotary positions, from the angles that a graph computes or looks up."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from ..checkpoint import CheckpointError
from .constants import Constants
from .graph import Node, OnnxGraph

# Relative error of a base that comes from float32 frequencies; published bases are whole numbers.
_ROUNDING = 1e-5
_CHECKED_POSITIONS = 8


def rotary_theta(
    graph: OnnxGraph, constants: Constants, nodes: Iterable[Node], head_dim: int, where: Node
) -> float:
    """Give theta of ``theta ** (-2i / head_dim)``.

    Parameters
    ----------
    graph : OnnxGraph
    constants : Constants
    nodes : iterable of Node
        Everything between a projection and the scores.
    head_dim : int
    where : Node
        To name in errors.

    Raises
    ------
    CheckpointError
        Where there are no rotary positions, or not those of Llama over the whole head.
    """
    nodes = list(nodes)
    _refuse_pairs(constants, nodes)
    half = head_dim // 2
    found = None
    for node in nodes:
        for tensor in node.inputs:
            frequencies = _frequencies(constants, tensor, half) if tensor in constants else None
            if frequencies is not None:
                found = frequencies
                break
    if found is None:
        found = _from_tables(constants, nodes, half)
    if found is None:
        raise CheckpointError(
            f"Before {where} no rotary positions over heads of {head_dim} were found.",
            "Use a model with Llama's rotary positions over the whole head.",
        )
    return _theta(found, head_dim, where)


def _refuse_pairs(constants: Constants, nodes: list[Node]) -> None:
    """Refuse the other convention, in which neighbours are a pair."""
    for node in nodes:
        steps = node.input(4)
        stepped = node.kind == "Slice" and steps in constants and (
            np.abs(constants.value(steps)) != 1
        ).any()  # fmt: skip
        if stepped or node.attributes.get("interleaved") or node.attributes.get(
            "rotary_embedding_dim"
        ):  # fmt: skip
            raise CheckpointError(
                f"{node} turns neighbouring values or a part of a head, which fabric does not.",
                "Use a model with Llama's rotary positions over the whole head.",
            )


def _frequencies(constants: Constants, tensor: str, half: int) -> npt.NDArray[np.float64] | None:
    """Give the frequencies that a constant holds: half a head of numbers falling from one."""
    shape = constants.shape(tensor)
    if max(shape, default=0) not in (half, 2 * half) or np.prod(shape) != max(shape):
        return None
    values = constants.value(tensor)
    if values.dtype.kind != "f":
        return None
    values = values.reshape(-1).astype(np.float64)
    falling = values[0] == 1.0 and (half == 1 or (np.diff(values[:half]) < 0).all())
    return values[:half] if falling and (values > 0).all() else None


def _from_tables(
    constants: Constants, nodes: list[Node], half: int
) -> npt.NDArray[np.float64] | None:
    """Give the frequencies from tables of cosines and sines, [..., positions, half or whole]."""
    tables: dict[str, npt.NDArray[np.float64]] = {}
    for node in nodes:
        for tensor in node.inputs:
            if tensor not in constants:
                continue
            shape = constants.shape(tensor)
            if len(shape) < 2 or shape[-1] not in (half, 2 * half) or shape[-2] < 2:
                continue
            values = constants.value(tensor)
            if values.dtype.kind == "f" and values.size == shape[-2] * shape[-1]:
                rows = values.reshape(shape[-2:])[:_CHECKED_POSITIONS, :half].astype(np.float64)
                kind = {1.0: "cosine", 0.0: "sine"}.get(float(rows[0, 0]))
                if kind is not None and (rows[0] == rows[0, 0]).all():
                    tables[kind] = rows
    if len(tables) < 2:
        return None
    angles = np.unwrap(np.arctan2(tables["sine"], tables["cosine"]), axis=0)
    positions = np.arange(len(angles))[:, None]
    frequencies = angles[1]
    straight = np.abs(angles - positions * frequencies).max() < 1e-3
    return frequencies if straight and (frequencies > 0).all() else None


def _theta(frequencies: npt.NDArray[np.float64], head_dim: int, where: Node) -> float:
    """Give the base, checking that every frequency belongs to it."""
    exponents = np.arange(0, head_dim, 2) / head_dim
    if head_dim == 2:
        raise CheckpointError(
            f"Before {where} heads have two values, from which no rotary base can be told.",
            "Use a model with larger heads.",
        )
    theta = float(frequencies[-1] ** (-1.0 / exponents[-1]))
    if abs(theta - round(theta)) < _ROUNDING * theta:
        theta = float(round(theta))
    if not np.allclose(frequencies, theta**-exponents, rtol=1e-3):
        raise CheckpointError(
            f"The rotary positions before {where} are scaled, which fabric does not compute.",
            "Use a model without rotary scaling (rope_scaling).",
        )
    return theta
