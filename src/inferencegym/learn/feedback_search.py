"""CMA-ES over the parameters of the feedback rule for the knobs (`policies.feedback`): thirty numbers with a memory, no gradients, no network.

The search begins at what is best on a few validation scenarios, the same for all: the best setting that never changes, held for ever; the numbers
of `slo-feedback`; or those with the other levers of the best setting. Numbers that span orders of magnitude are searched by factors.
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
from inferencegym.policies.feedback import (
    DEFAULTS,
    FACTORS,
    HIGHS,
    LOWS,
    NAMES,
    SCALES,
    decide,
    fresh_memory,
    holding,
    levers_of,
    parameters_of,
)

_SEARCHED = np.flatnonzero(SCALES > 0)
_FACTORS = np.isin(NAMES, FACTORS)
#: Validation scenarios that a beginning is chosen on, and training scenarios that the arrival rate is measured on.
_COMPARED = _MEASURED = 8


def play(parameters: Floats, task: Task, scenarios: Sequence[int]) -> Floats:
    """Values [n, s] of n rules (parameters float64[n, p]) on s scenario numbers each, all side by side."""
    rows = np.ascontiguousarray(np.repeat(parameters, len(scenarios), axis=0))
    memory = fresh_memory(len(rows))

    def command(batch: Batch) -> None:
        decide(rows, memory, batch.observations, batch.masks, batch.actions)

    return play_whole(command, len(parameters), task, scenarios)


def beginnings(task: Any, limit: int) -> Floats:
    """float64[3, p]: where a search may begin. Busy is what is above the mean rate of the first training scenarios (of `limit`)."""
    setting = first_setting(task)
    arrivals = [len(task.workload(scenario("train", i))) for i in range(min(_MEASURED, limit))]
    rate = {"busy_rate": float(np.clip(np.mean(arrivals) / task.duration_s, *_bounds("busy_rate")))}
    found = np.array([holding(setting), DEFAULTS, parameters_of(levers_of(setting))])
    found[:, NAMES.index("busy_rate")] = rate["busy_rate"]
    return found


def first_parameters(task: Any, limit: int) -> Floats:
    """float64[p]: the best of the beginnings on the first validation scenarios."""
    found = beginnings(task, limit)
    values = play(found, task, [scenario("validation", i) for i in range(_COMPARED)])
    best: Floats = found[int(np.argmax(values.mean(axis=1)))]
    return best


class FeedbackLearner(RuleLearner):
    """Searches the parameters; deterministic in its seed, and resumed as its parent is."""

    kind, surface = "feedback", "knobs"
    figures: tuple[str, ...] = ("best_of_generation", "sigma")

    def __init__(self, config: TrainConfig, task: Any) -> None:
        if not isinstance(task, ServeTask):
            raise ConfigError("algorithm", f"'{task.name}' is not for this rule", allowed="a task of LLMServe")
        self.first = first_parameters(task, config.scenarios)
        super().__init__(config, task)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The mean of the search, by name."""
        return {"names": np.array(NAMES), "parameters": self._parameters(self._search.mean)}

    def _play(self, asked: list[Floats]) -> tuple[Floats, dict[str, float]]:
        return play(np.array([self._parameters(one) for one in asked]), self.task, self._scenarios()), {}

    def _dimensions(self) -> int:
        return len(_SEARCHED)

    def _parameters(self, point: Floats) -> Floats:
        """The rule at a point of the search; beyond a bound it is the rule at the bound."""
        steps = np.zeros(len(NAMES))
        steps[_SEARCHED] = point * SCALES[_SEARCHED]
        found = np.where(_FACTORS, self.first * np.exp(np.where(_FACTORS, steps, 0.0)), self.first + steps)
        return np.minimum(np.maximum(found, LOWS), HIGHS)


def _bounds(name: str) -> tuple[float, float]:
    at = NAMES.index(name)
    return float(LOWS[at]), float(HIGHS[at])
