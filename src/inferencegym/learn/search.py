"""CMA-ES over the parameters of a memory rule (`policies.tuned`): a few dozen numbers, tuned on whole episodes, all candidates side by side.

A generation plays every candidate on the same fresh training scenarios (common random numbers). What counts is the mean value, to which a
crash adds next to nothing: enough scenarios a generation are what teaches the search to fear crashes that are rare.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.decision.columns import Floats
from inferencegym.envs.batch import Task
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import ConfigError, MissingExtraError
from inferencegym.ground.rng import stream
from inferencegym.learn.checkpoint import State
from inferencegym.learn.config import TrainConfig
from inferencegym.learn.settings import CMA
from inferencegym.learn.varied import vary
from inferencegym.policies.tuned import DEFAULTS, HIGHS, LOWS, NAMES, SCALES, decide, fresh_memory

try:
    with warnings.catch_warnings():
        # It would like to plot.
        warnings.filterwarnings("ignore", message="Could not import matplotlib")
        import cma
except ImportError as error:
    raise MissingExtraError("train", "the algorithm 'cma'") from error

_SEARCHED = np.flatnonzero(SCALES > 0)


def play(parameters: Floats, task: Task, scenarios: Sequence[int]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """(values, crashes), both [n, s], of n rules (parameters float64[n, p]) on s scenario numbers each, all side by side."""
    n, s = len(parameters), len(scenarios)
    rows = np.ascontiguousarray(np.repeat(parameters, s, axis=0))
    batch = task.batch(n * s)
    for row in range(n * s):
        batch.start(row, scenarios[row % s])
    memory = fresh_memory(rows)
    values, crashed, going = np.zeros(n * s), np.zeros(n * s, np.bool_), np.ones(n * s, np.bool_)
    while going.any():
        decide(rows, memory, batch.observations, batch.masks, batch.actions)
        batch.step()
        over = batch.terminated | batch.truncated
        if not over.any():
            continue
        for row in np.flatnonzero(over).tolist():
            if going[row]:
                values[row], crashed[row], going[row] = batch.outcome(row).value, batch.terminated[row], False
            # A row that is done goes round again until all are.
            batch.start(row, scenarios[row % s])
            memory[row] = fresh_memory(rows[row : row + 1])[0]
    return values.reshape(n, s), crashed.reshape(n, s)


def play_whole(command: Callable[[Any], None], candidates: int, task: Task, scenarios: Sequence[int]) -> Floats:
    """Values [candidates, s] on s scenario numbers each, of episodes that all have the same length; `command` fills a batch's actions."""
    n, s = candidates, len(scenarios)
    batch = task.batch(n * s)
    for row in range(n * s):
        batch.start(row, scenarios[row % s])
    for _ in range(task.steps):
        command(batch)
        batch.step()
    return np.array([batch.outcome(row).value for row in range(n * s)]).reshape(n, s)


class RuleLearner:
    """Searches the parameters; deterministic in its seed. What it keeps is the values it was told: the same questions follow from them."""

    kind, surface = "rule", "paging"
    activation = ""
    figures: tuple[str, ...] = ("best_of_generation", "crash_rate", "sigma")

    def __init__(self, config: TrainConfig, task: Any) -> None:
        given = config.settings
        assert isinstance(given, CMA)
        if task.surface.name != self.surface:
            raise ConfigError(
                "algorithm", f"'{task.name}' is not for this rule", allowed=f"a task of surface '{self.surface}'"
            )
        if config.rows < given.population:
            raise ConfigError("rows", f"{config.rows}", allowed=f"{given.population} or more: one for each candidate")
        self.config, self.given, self.task = config, given, task
        self.played = vary(task, config.randomise)
        """What candidates are tried on."""
        self.each = config.rows // given.population
        """Scenarios that a candidate is tried on."""
        self.steps = self.episodes = 0
        self.told: list[list[float]] = []
        """Value of each candidate, generation by generation."""
        self._begin()

    def update(self) -> dict[str, float]:
        """A generation."""
        asked = self._search.ask()
        values, figures = self._play(asked)
        means = values.mean(axis=1)
        self._tell(asked, means.tolist())
        self.steps += values.size * self.task.steps
        self.episodes += values.size
        return {
            "episodes": float(self.episodes), "episode_return": float("nan"), "episode_value": float(means.mean()),
            "episode_steps": float(self.task.steps), "best_of_generation": float(means.max()), "sigma": float(self._search.sigma),
            **figures,
        }  # fmt: skip

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The mean of the search, by name."""
        return {"names": np.array(NAMES), "parameters": self._parameters(self._search.mean)}

    def keep(self) -> State:
        """Everything that the next update depends on."""
        told = np.array(self.told).reshape(len(self.told), self.given.population)
        return {"steps": self.steps, "episodes": self.episodes}, {"told": told}

    def restore(self, state: State) -> None:
        """Go on from there, by telling the search again what it was told."""
        notes, arrays = state
        told = arrays["told"]
        if told.ndim != 2 or told.shape[1] != self.given.population:
            raise ValueError(f"its generations have shape {told.shape}, not {self.given.population} candidates")
        self._begin()
        for values in told.tolist():
            self._tell(self._search.ask(), values)
        self.steps, self.episodes = int(notes["steps"]), int(notes["episodes"])

    def _play(self, asked: list[Floats]) -> tuple[Floats, dict[str, float]]:
        """Values [candidates, scenarios] of a generation, and figures of its own kind."""
        values, crashed = play(np.array([self._parameters(one) for one in asked]), self.played, self._scenarios())
        return values, {"crash_rate": float(crashed.mean())}

    def _scenarios(self) -> list[int]:
        """Scenario numbers of the next generation: each has its own, as long as there are new ones."""
        first = len(self.told) * self.each
        return [scenario("train", (first + i) % self.config.scenarios) for i in range(self.each)]

    def _dimensions(self) -> int:
        return len(_SEARCHED)

    def _begin(self) -> None:
        chance = stream(self.config.seed, "learn.search")
        self.told = []
        options = {
            "popsize": self.given.population, "verbose": -9, "seed": np.nan,
            "randn": lambda rows, columns: chance.standard_normal((rows, columns)),
        }  # fmt: skip
        self._search = cma.CMAEvolutionStrategy(np.zeros(self._dimensions()), self.given.sigma, options)

    def _tell(self, asked: list[Floats], values: list[float]) -> None:
        self._search.tell(asked, [-value for value in values])
        self.told.append(values)

    def _parameters(self, point: Floats) -> Floats:
        """The rule at a point of the search; beyond a bound it is the rule at the bound."""
        found = DEFAULTS.copy()
        found[_SEARCHED] += point * SCALES[_SEARCHED]
        return np.minimum(np.maximum(found, LOWS), HIGHS)
