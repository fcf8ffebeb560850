"""The account of a vector environment's episodes: how far each row is, what it has earned, and, if wanted, what it did, so that it can be put there again."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.decision.knobs import LEVERS
from inferencegym.envs.vector import PlantVectorEnv
from inferencegym.ground.errors import ConfigError

Array = npt.NDArray[Any]


class Rows:
    """Steps and return of each row's episode so far; with `resumable` also its actions."""

    def __init__(self, vector: PlantVectorEnv, *, resumable: bool) -> None:
        self.vector, self.resumable = vector, resumable
        n = vector.num_envs
        self.lengths: npt.NDArray[np.int64] = np.zeros(n, np.int64)
        self.returns: npt.NDArray[np.float64] = np.zeros(n)
        paging = vector.task.surface.name == "paging"
        shape = (n, vector.task.steps, *(() if paging else (len(LEVERS),)))
        self._log: Array = np.zeros(shape if resumable else 0, np.int8 if paging else np.float64)
        self._all = np.arange(n)

    def clear(self) -> None:
        """All rows begin."""
        self.lengths[:], self.returns[:] = 0, 0.0

    def add(self, rewards: npt.NDArray[np.float64]) -> None:
        """Every row has taken a step."""
        if self.resumable:
            self._log[self._all, self.lengths] = self.vector.taken
        self.returns += rewards
        self.lengths += 1

    def end(self, row: int) -> tuple[float, int]:
        """(return, steps) of a row's episode, which has ended."""
        found = float(self.returns[row]), int(self.lengths[row])
        self.returns[row], self.lengths[row] = 0.0, 0
        return found

    def keep(self) -> tuple[list[dict[str, Any]], dict[str, Array]]:
        """Where every row stands: the states of their chance, and arrays. `restore` is the inverse, to the bit."""
        if not self.resumable:
            raise ConfigError("resumable", "False", allowed="True, from the beginning")
        scenarios, chance = self.vector.standing
        taken = np.concatenate([self._log[i, :length] for i, length in enumerate(self.lengths.tolist())])
        return chance, {
            "scenarios": scenarios, "lengths": self.lengths.copy(), "returns": self.returns.copy(), "actions": taken,
        }  # fmt: skip

    def restore(self, chance: list[dict[str, Any]], arrays: dict[str, Array]) -> npt.NDArray[np.float32]:
        """Put every row where it stood, by playing its actions again; returns the observations."""
        lengths = arrays["lengths"]
        logs = np.split(arrays["actions"], np.cumsum(lengths)[:-1])
        observations = self.vector.stand(arrays["scenarios"], chance, logs)
        self.lengths[:], self.returns[:] = lengths, arrays["returns"]
        for i, log in enumerate(logs):
            self._log[i, : len(log)] = log
        return observations
