"""Runs of one task side by side, stepped together: what single environments (one row), vector environments and planners drive.

Arrays are written in place by `start` and `step` and are the batch's own: who keeps one copies it. Row i of a batch is what a
batch of one with the same scenario would be, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from inferencegym.decision.columns import Float32s, Floats, Masks


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an episode: `value` is what grades compare, `parts` are what it is made of and what people ask about."""

    value: float
    """Higher is better; 0 is nothing achieved, 1 about all that could be."""
    parts: dict[str, float]
    """The terms of `value`, by name; they add up to it (a crash replaces the sum)."""
    facts: dict[str, float]
    """Figures beside the score (requests served, SLO compliance, preemptions, ticks survived): name -> number."""


class Batch(Protocol):
    """n runs of one task."""

    n: int
    actions: npt.NDArray[Any]
    """Filled by the caller before `step`: int64[n] (paging) or float64[n, 6] (knobs)."""
    observations: Float32s
    """float32[n, k], encoded."""
    masks: Masks
    """int8[n, m]: what the next action may be."""
    rewards: Floats
    """float64[n], of the last step."""
    terms: Floats
    """float64[n, t]: the rewards' terms, in the order of the task's `reward_terms`."""
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]

    def start(self, row: int, scenario: int) -> None:
        """Begin an episode in a row: the scenario's traffic from its beginning. Writes the row's observation and mask."""

    def step(self) -> None:
        """Take every row's action. Rows that have ended must have been started again."""

    def outcome(self, row: int) -> Outcome:
        """What came of the row's episode so far; what has not been reached counts as not achieved."""

    def branch(self, row: int, copies: int) -> Batch:
        """A batch of independent copies of a row, which go on from here into the same future."""

    def facts(self, row: int) -> dict[str, float]:
        """How the row stands, in natural units: for `info`, rendering and recordings."""


class Task(Protocol):
    """What is to be done, and how it is judged: plant, traffic, prices, horizon. Made from a data file; two of the same digest are the same."""

    name: str
    family: str
    """llmserve or pagedkv."""
    surface: Any
    digest: str
    """sha256 of all that shapes an episode; every result carries it."""
    steps: int
    """Most steps of an episode."""
    reward_terms: Sequence[str]
    description: str

    def batch(self, n: int) -> Batch:
        """Room for n episodes side by side."""
