"""Regression trees on binned columns, grown best question first: what policies are distilled with. No units; thresholds come from the caller.

The target of a row is a vector, and each of its numbers has a weight of its own, so that choices that were not allowed say nothing.
With 0/1 targets, the squared error that a question saves is the Gini impurity it saves, added up over the choices (Breiman et al. 1984).
Own code because scikit-learn's trees weigh whole rows only, and because 80 lines save a dependency of 40 MB.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Question:
    """One branching: rows of `node` whose bin of `column` is below `cut` go to `below`, the others to `above`. Nodes count from 0, the root."""

    node: int
    column: int
    cut: int
    below: int
    above: int
    saved: float
    """Squared error that it saves."""


def bins_of(observations: npt.NDArray[np.float32], edges: Sequence[npt.NDArray[np.float32]]) -> Ints:
    """int64[n, k]: in which interval of its column each value lies; a value on an edge belongs above it."""
    return np.stack(
        [np.searchsorted(cut, column, side="right") for cut, column in zip(edges, observations.T, strict=True)], axis=1
    )


def grow(bins: Ints, targets: Floats, weights: Floats, *, splits: int, least: int) -> list[Question]:
    """The `splits` questions that save most, in the order in which they were found; fewer where nothing is left to save.

    `bins`: int64[n, k]; `targets`, `weights`: float64[n, m]; `least`: rows that each side of a question must have.
    """
    told = np.concatenate([weights, weights * targets], axis=1)
    widths = (bins.max(axis=0) + 1).tolist() if len(bins) else []
    asked: list[Question] = []
    # (-saved, node) decides; ties go to the older node, so a tree is the same on every machine.
    waiting: list[tuple[float, int, int, int, Ints]] = []

    def consider(node: int, rows: Ints) -> None:
        found = _best(bins, told, rows, widths, least)
        if found is not None:
            saved, column, cut = found
            heapq.heappush(waiting, (-saved, node, column, cut, rows))

    consider(0, np.arange(len(bins)))
    while waiting and len(asked) < splits:
        negative, node, column, cut, rows = heapq.heappop(waiting)
        below, above = 2 * len(asked) + 1, 2 * len(asked) + 2
        asked.append(Question(node, column, cut, below, above, -negative))
        low = bins[rows, column] < cut
        consider(below, rows[low])
        consider(above, rows[~low])
    return asked


def nodes_of(bins: Ints, questions: Sequence[Question]) -> Ints:
    """int64[n]: the node where each row ends."""
    at = np.zeros(len(bins), np.int64)
    for one in questions:
        here = at == one.node
        at[here] = np.where(bins[here, one.column] < one.cut, one.below, one.above)
    return at


def _best(bins: Ints, told: Floats, rows: Ints, widths: list[int], least: int) -> tuple[float, int, int] | None:
    """(saved, column, cut) of the best question about some rows; None if there is none."""
    if len(rows) < 2 * least:
        return None
    own = told[rows]
    m = own.shape[1] // 2
    whole = _explained(own.sum(axis=0)[None], m)[0]
    best = None
    for column, width in enumerate(widths):
        if width < 2:
            continue
        place = bins[rows, column]
        counts = np.cumsum(np.bincount(place, minlength=width))[:-1]
        allowed = (counts >= least) & (len(rows) - counts >= least)
        if not allowed.any():
            continue
        sums: Floats = np.stack([np.bincount(place, weights=one, minlength=width) for one in own.T], axis=1).astype(
            np.float64
        )
        below = sums.cumsum(axis=0)[:-1]
        saved = _explained(below, m) + _explained(own.sum(axis=0) - below, m) - whole
        saved[~allowed] = -np.inf
        cut = int(saved.argmax())
        if saved[cut] > 1e-9 * max(1.0, whole) and (best is None or saved[cut] > best[0] * (1 + 1e-12)):
            best = float(saved[cut]), column, cut + 1
    return best


def _explained(sums: Floats, m: int) -> Floats:
    """float64[...]: squared error that means explain, of [..., weights and weighted targets]."""
    weight, total = sums[:, :m], sums[:, m:]
    shares: Floats = np.divide(total * total, weight, out=np.zeros_like(total), where=weight > 1e-12)
    found: Floats = shares.sum(axis=1)
    return found
