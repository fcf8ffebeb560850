"""How good a policy is in the middle of its training: mean value on scenarios that are kept for that, all played side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inferencegym.envs.actors import BEST_STATIC, actor
from inferencegym.envs.batch import Task
from inferencegym.envs.episode import record
from inferencegym.envs.grade import load_anchors
from inferencegym.envs.splits import scenario
from inferencegym.learn.randomise import Randomise
from inferencegym.learn.varied import delayed
from inferencegym.policies.feedback import FeedbackKnobs
from inferencegym.policies.linear import LinearKnobs
from inferencegym.policies.trained import Loaded
from inferencegym.policies.tuned import TunedSieve

SPLIT = "validation"


def values_of(policy: Loaded, task: Task, indices: Sequence[int], *, split: str = SPLIT) -> list[float]:
    """The value of the episode that a trained policy plays on each scenario."""
    if isinstance(policy, TunedSieve):
        from inferencegym.learn.search import play

        values, _ = play(policy.parameters[None], task, [scenario(split, index) for index in indices])
        return [float(value) for value in values[0]]
    if isinstance(policy, LinearKnobs):
        from inferencegym.learn import linear_search

        numbers = [scenario(split, index) for index in indices]
        return [float(value) for value in linear_search.play(policy.weights[None], policy.frame, task, numbers)[0]]
    if isinstance(policy, FeedbackKnobs):
        from inferencegym.learn import feedback_search

        numbers = [scenario(split, index) for index in indices]
        return [float(value) for value in feedback_search.play(policy.parameters[None], task, numbers)[0]]
    n = len(indices)
    batch = task.batch(n)
    for row, index in enumerate(indices):
        batch.start(row, scenario(split, index))
    found: dict[int, float] = {}
    while len(found) < n:
        scores = policy.scores_of(batch.observations)
        batch.actions[:] = policy.head.rows(scores, batch.observations, batch.masks)
        batch.step()
        for row in np.flatnonzero(batch.terminated | batch.truncated).tolist():
            found.setdefault(row, batch.outcome(row).value)
            # A row that is done goes round again until all are.
            batch.start(row, scenario(split, indices[row]))
    return [found[row] for row in range(n)]


def late_news(task: Task, randomise: Randomise) -> Task | None:
    """The task with old news, for a training with delays, which is judged on it too; None for others."""
    most = randomise.delay[1]
    return delayed(task, most) if most else None


def worth(value: float, late: float | None) -> float:
    """What chooses the best policy: its value; of a training with delays, the mean with its value with old news, or the best would be who does without."""
    return value if late is None else (value + late) / 2


def best_static(task: Task, indices: Sequence[int], *, split: str = SPLIT) -> float | None:
    """Mean value, on the same scenarios, of the best configuration that never changes; None where it was never searched."""
    if load_anchors(task) is None:
        return None
    fixed = actor(BEST_STATIC, task)
    return float(np.mean([record(task, fixed, split=split, scenario=index).value for index in indices]))
