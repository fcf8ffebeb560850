"""CMA-ES over the weights of a linear rule for the knobs (`policies.linear`): thirty-six numbers, no gradients, no network.

The search begins at the best setting that never changes, with all weights 0, so that its first generation is already near it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.decision.columns import Floats
from inferencegym.envs.batch import Batch, Task
from inferencegym.envs.serve_task import ServeTask
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import ConfigError
from inferencegym.learn.config import TrainConfig
from inferencegym.learn.first import first_setting
from inferencegym.learn.search import RuleLearner, play_whole
from inferencegym.policies.linear import FEATURES, MOVED, Frame, decide, features_of

_SHAPE = (MOVED, len(FEATURES) + 1)
#: Of a weight: knobs' numbers go from -1 to 1.
_SCALE = 0.2
_LEAST_DEVIATION = 1e-3
#: Training scenarios on which figures are measured.
_MEASURED = 8


def play(weights: Floats, frame: Frame, task: Task, scenarios: Sequence[int]) -> Floats:
    """Values [n, s] of n rules (weights float64[n, 4, f + 1]) on s scenario numbers each, all side by side."""
    rows = np.ascontiguousarray(np.repeat(weights, len(scenarios), axis=0))

    def command(batch: Batch) -> None:
        decide(rows, frame, batch.observations, batch.masks, batch.actions)

    return play_whole(command, len(weights), task, scenarios)


def first_frame(task: Any, limit: int) -> Frame:
    """The best static setting, and what it sees on the first training scenarios (of `limit`)."""
    base = first_setting(task)
    batch = task.batch(min(_MEASURED, limit))
    for row in range(batch.n):
        batch.start(row, scenario("train", row))
    seen = []
    for _ in range(task.steps):
        seen.append(features_of(batch.observations))
        batch.actions[:] = base
        batch.step()
    figures = np.concatenate(seen)
    return Frame(figures.mean(axis=0), np.maximum(figures.std(axis=0), _LEAST_DEVIATION), base)


class LinearLearner(RuleLearner):
    """Searches the weights; deterministic in its seed, and resumed as its parent is."""

    kind, surface = "linear", "knobs"
    figures: tuple[str, ...] = ("best_of_generation", "sigma")

    def __init__(self, config: TrainConfig, task: Any) -> None:
        if not isinstance(task, ServeTask):
            raise ConfigError("algorithm", f"'{task.name}' is not for this rule", allowed="a task of LLMServe")
        self.frame = first_frame(task, config.scenarios)
        super().__init__(config, task)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The mean of the search, with what it stands on."""
        frame = self.frame
        return {
            "names": np.array(FEATURES), "mean": frame.mean, "scale": frame.scale, "base": frame.base, "weights": self._weights(self._search.mean),
        }  # fmt: skip

    def _play(self, asked: list[Floats]) -> tuple[Floats, dict[str, float]]:
        return play(np.array([self._weights(one) for one in asked]), self.frame, self.played, self._scenarios()), {}

    def _dimensions(self) -> int:
        return int(np.prod(_SHAPE))

    def _weights(self, point: Floats) -> Floats:
        moved: Floats = self.frame.resting() + _SCALE * np.asarray(point).reshape(_SHAPE)
        return moved
