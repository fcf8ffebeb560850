"""An episode played again from its actions, so that any moment of it can be looked at: no policy is asked, and the numbers are the run's own, to the bit.

Runs in the process at the Desk. Key frames lie a twentieth of an episode apart; whatever lies between is stepped to from the one before it.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.decision.columns import Float32s, Floats, Masks
from inferencegym.envs.llmserve import ServeBatch
from inferencegym.envs.pagedkv import PagedTask

FRAMES = 20


class Replay:
    """One episode so far. Rows of the arrays below `total` (observations and masks: up to it) are filled, the others are zero."""

    def __init__(self, task: Any, scenario: int) -> None:
        self.task = task
        self.total = 0
        """Decisions that have been played."""
        self.per_sample = task.rules.decisions_per_tick if isinstance(task, PagedTask) else 1
        """Decisions of a sample (a tick or a window)."""
        self.head: Any = task.batch(1)
        """The batch of one row as it stands after the last decision; nobody steps it but `extend`."""
        self.head.start(0, scenario)
        steps = task.steps
        self.actions: npt.NDArray[Any] = np.zeros((steps, *self.head.actions.shape[1:]), self.head.actions.dtype)
        self.rewards: Floats = np.zeros(steps)
        self.terms: Floats = np.zeros((steps, len(task.reward_terms)))
        self.observations: Float32s = np.zeros((steps + 1, self.head.observations.shape[1]), np.float32)
        self.masks: Masks = np.zeros((steps + 1, self.head.masks.shape[1]), np.int8)
        self.levers: Floats | None = np.zeros((steps + 1, 6)) if isinstance(self.head, ServeBatch) else None
        """float64[t, 6]: the knobs in force before each decision."""
        self.seen: Floats | None = None if self.levers is None else np.zeros((steps + 1, self.head.fleet.seen.shape[1]))
        """float64[t, k]: the snapshot before each decision, which no column's end saturates."""
        self._every = max(1, steps // FRAMES)
        self._frames: list[tuple[int, Any]] = [(0, self.head.branch(0, 1))]
        self._cursor: tuple[int, Any] = (0, self._frames[0][1].branch(0, 1))
        self._note()

    @property
    def crashed(self) -> bool:
        """Whether its last decision ended it in a crash."""
        return bool(self.head.terminated[0])

    @property
    def over(self) -> bool:
        """Whether it has come to its end."""
        return self.crashed or bool(self.head.truncated[0])

    def extend(self, actions: npt.NDArray[Any]) -> None:
        """Play on: `actions` are all of the episode's so far, of which those already played are skipped."""
        batch = self.head
        for t in range(self.total, len(actions)):
            if t and t % self._every == 0:
                self._frames.append((t, batch.branch(0, 1)))
            self.actions[t] = batch.actions[0] = actions[t]
            batch.step()
            self.rewards[t], self.terms[t] = batch.rewards[0], batch.terms[0]
            self.total = t + 1
            self._note()

    def _note(self) -> None:
        self.observations[self.total], self.masks[self.total] = self.head.observations[0], self.head.masks[0]
        if self.levers is not None and self.seen is not None:
            self.levers[self.total], self.seen[self.total] = self.head.fleet.levers[0], self.head.fleet.seen[0]

    def at(self, decision: int) -> Any:
        """The batch as it stood before a decision (`total`: at the end), fresh from a step, so that what the last step measured is there.

        It is this replay's own until the next call: who wants to step it makes a branch.
        """
        assert 0 <= decision <= self.total
        frame, held = self._frames[max(bisect_left(self._frames, decision, key=lambda one: one[0]) - 1, 0)]
        at, batch = self._cursor
        if not frame < at <= decision:
            at, batch = frame, held.branch(0, 1)
        for t in range(at, decision):
            batch.actions[0] = self.actions[t]
            batch.step()
        self._cursor = decision, batch
        return batch
