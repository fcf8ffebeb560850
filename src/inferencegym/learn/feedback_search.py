"""CMA-ES over the parameters of the feedback rule for the knobs (`policies.feedback`): 31 numbers with a memory, no gradients, no network.

The search begins at what is best on a few training scenarios, the same for all: the best setting that never changes, held for ever;
`slo-feedback`; or rules between the two (`beginnings`). Numbers that span orders of magnitude are searched by factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
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
from inferencegym.learn.randomise import Randomise
from inferencegym.learn.search import RuleLearner, play_whole
from inferencegym.learn.varied import vary
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
#: Training scenarios that a beginning is chosen on.
_COMPARED = 16
#: What beginnings are made of: when it is busy, as times the mean rate, and for how many windows; and a share that moves by small steps.
_BUSY_TIMES, _STAYS_BUSY = (1.15, 1.33), 20.0
_MEMORIES = (0.5, 0.15)
_SMALL_STEPS = {"up_missed": 0.0, "up_full": 0.1, "down": 0.05, "calm_windows": 1.0}
_LEAST_SHARE = float(LOWS[NAMES.index("floor")])


def play(parameters: Floats, task: Task, scenarios: Sequence[int]) -> Floats:
    """Values [n, s] of n rules (parameters float64[n, p]) on s scenario numbers each, all side by side."""
    rows = np.ascontiguousarray(np.repeat(parameters, len(scenarios), axis=0))
    memory = fresh_memory(len(rows))

    def command(batch: Batch) -> None:
        decide(rows, memory, batch.observations, batch.masks, batch.actions)

    return play_whole(command, len(parameters), task, scenarios)


def play_varied(parameters: Floats, task: Any, randomise: Randomise, scenarios: Sequence[int]) -> Floats:
    """The same; where episodes vary, the first half of the scenarios, rounded up, are played as the task has them."""
    plain = (len(scenarios) + 1) // 2 if randomise.varies else len(scenarios)
    values = [play(parameters, task, scenarios[:plain])]
    if plain < len(scenarios):
        values.append(play(parameters, vary(task, randomise), scenarios[plain:]))
    return np.concatenate(values, axis=1)


def beginnings(task: Any, limit: int) -> Floats:
    """float64[b, p]: where a search may begin; the first holds the best setting for ever, the second is `slo-feedback`.

    The others have the levers of the best setting when it is busy, and its tier or a better one when it is calm; their share is held, moved
    as `slo-feedback` does, or by small steps. Busy is what is above so many times the mean rate of the first training scenarios (of `limit`).
    """
    setting = first_setting(task)
    share, tier = float(setting[1]), int(setting[3])
    arrivals = [len(task.workload(scenario("train", i))) for i in range(min(_COMPARED, limit))]
    mean_rps = float(np.mean(arrivals)) / task.duration_s
    at = NAMES.index("busy_rate")
    found = [holding(setting), DEFAULTS.copy()]
    found[0][at] = found[1][at] = min(max(mean_rps, LOWS[at]), HIGHS[at])
    small = {
        "start": share,
        "floor": max(_LEAST_SHARE, share - 0.1),
        "busy_floor": max(_LEAST_SHARE, share - 0.1),
    } | _SMALL_STEPS
    for moved in (dict.fromkeys(("start", "floor", "top", "busy_floor"), share), {}, small):
        for calm in range(tier + 1):
            for times, memory in product(_BUSY_TIMES, _MEMORIES) if calm < tier else [(_BUSY_TIMES[0], _MEMORIES[0])]:
                rate = min(max(times * mean_rps, LOWS[at]), HIGHS[at])
                other = {
                    "tier": float(calm),
                    "tier_most": float(tier),
                    "busy_rate": rate,
                    "busy_windows": _STAYS_BUSY,
                    "rate_memory": memory,
                }
                found.append(parameters_of(levers_of(setting) | moved | other))
    return np.array(found)


def first_parameters(task: Any, randomise: Randomise, limit: int) -> Floats:
    """float64[p]: the best of the beginnings on the first training scenarios (of `limit`), as they vary."""
    found = beginnings(task, limit)
    values = play_varied(found, task, randomise, [scenario("train", i) for i in range(min(_COMPARED, limit))])
    best: Floats = found[int(np.argmax(values.mean(axis=1)))]
    return best


class FeedbackLearner(RuleLearner):
    """Searches the parameters; deterministic in its seed, and resumed as its parent is."""

    kind, surface = "feedback", "knobs"
    figures: tuple[str, ...] = ("best_of_generation", "sigma")

    def __init__(self, config: TrainConfig, task: Any) -> None:
        if not isinstance(task, ServeTask):
            raise ConfigError("algorithm", f"'{task.name}' is not for this rule", allowed="a task of LLMServe")
        self.first = first_parameters(task, config.randomise, config.scenarios)
        super().__init__(config, task)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The mean of the search, by name."""
        return {"names": np.array(NAMES), "parameters": self._parameters(self._search.mean)}

    def _play(self, asked: list[Floats]) -> tuple[Floats, dict[str, float]]:
        parameters = np.array([self._parameters(one) for one in asked])
        return play_varied(parameters, self.task, self.config.randomise, self._scenarios()), {}

    def _dimensions(self) -> int:
        return len(_SEARCHED)

    def _parameters(self, point: Floats) -> Floats:
        """The rule at a point of the search; beyond a bound it is the rule at the bound."""
        steps = np.zeros(len(NAMES))
        steps[_SEARCHED] = point * SCALES[_SEARCHED]
        found = np.where(_FACTORS, self.first * np.exp(np.where(_FACTORS, steps, 0.0)), self.first + steps)
        return np.minimum(np.maximum(found, LOWS), HIGHS)
