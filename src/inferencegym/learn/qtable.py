"""Tabular Q-learning, without torch: a few observation columns cut into intervals, a value for each choice in each cell, learned step by step.

`CUTS` says which columns and where, in natural units; it is a compromise between a table that can be filled in minutes and one that tells
situations apart. Rows of the environment share the table; chance comes from one named stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.envs.vector import PlantVectorEnv
from inferencegym.ground.jit import kernel
from inferencegym.ground.rng import stream
from inferencegym.learn.checkpoint import State
from inferencegym.learn.config import TrainConfig
from inferencegym.learn.rows import Rows
from inferencegym.learn.settings import Tabular
from inferencegym.learn.varied import vary
from inferencegym.policies.heads import find_head
from inferencegym.policies.simple import surface_of
from inferencegym.policies.table import Cells

#: Columns and the values (natural units) at which they are cut: 2,016 cells on paging, 576 on knobs.
CUTS: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "paging": {
        "gpu_utilization_pct": (0.5, 0.7, 0.8, 0.88, 0.94, 0.98),
        "free_queue_pressure": (1, 5, 20),
        "vip_queue_pressure": (1, 4),
        "free_max_wait_time_pct": (0.3, 0.7),
        "vip_max_wait_time_pct": (0.5,),
        "free_size_max": (1,),
        "vip_size_max": (1,),
    },
    "knobs": {
        "request_arrival_rate": (5, 10, 20, 30, 45, 60, 90),
        "queue_depth": (1, 20, 200),
        "kv_cache_occupancy": (0.4, 0.8),
        "slo_compliance_rate": (0.7, 0.97),
        "mean_prompt_length": (1000,),
    },
}
#: Decisions between two reports.
_REPORT_EVERY = 8192


def cells_of(surface: str) -> Cells:
    """The cells of a surface."""
    columns, cuts = surface_of(surface).columns, CUTS[surface]
    edges = np.full((len(cuts), max(len(values) for values in cuts.values())), np.inf, np.float32)
    natural = np.zeros(len(columns))
    for i, (name, values) in enumerate(cuts.items()):
        for j, value in enumerate(values):
            natural[columns.index(name)] = value
            edges[i, j] = columns.encode(natural)[columns.index(name)]
    return Cells(np.array([columns.index(name) for name in cuts]), edges)


def cut_table(surface: str) -> str:
    """The cuts as a Markdown table."""
    columns, cells = surface_of(surface).columns, cells_of(surface)
    lines = ["| column | unit | cut at |", "|---|---|---|"]
    for name, values in CUTS[surface].items():
        unit = columns[columns.index(name)].unit
        lines.append(f"| `{name}` | {unit} | {', '.join(f'{value:g}' for value in values)} |")
    return "\n".join([*lines, "", f"{cells.size:,} cells."])


class TableLearner:
    """Q-learning on the rows of a vector environment."""

    kind = "table"
    activation = ""
    figures: tuple[str, ...] = ("exploration_rate", "cells_visited", "mean_error")

    def __init__(self, config: TrainConfig, task: Any) -> None:
        given = config.settings
        assert isinstance(given, Tabular)
        self.config, self.given = config, given
        head = find_head(task.surface.name, config.encoding)
        self.cells = cells_of(task.surface.name)
        self.values = np.zeros((self.cells.size, sum(head.sizes)), np.float64)
        self.visits = np.zeros(self.values.shape, np.int64)
        encoding = "multidiscrete" if config.encoding == "actions" else config.encoding
        self.env = PlantVectorEnv(
            config.rows, vary(task, config.randomise), scenarios=config.scenarios, encoding=encoding
        )
        self._rng = stream(config.seed, "learn.qtable")
        self._observations, _ = self.env.reset(seed=config.seed)
        self._cell = self.cells.of(self._observations)
        self.steps, self.episodes = 0, 0
        self.rows = Rows(self.env, resumable=True)
        self._recent: list[tuple[float, float, float]] = []

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The table as it stands. What was never tried in a cell is worth less than anything that was."""
        values = self.values.astype(np.float32)
        worst = values.min(axis=1, keepdims=True) - 1.0
        values = np.where((self.visits > 0) | (self.visits.sum(axis=1, keepdims=True) == 0), values, worst)
        return {"columns": self.cells.columns, "edges": self.cells.edges, "values": values.astype(np.float32)}

    def update(self) -> dict[str, float]:
        """Some eight thousand decisions."""
        rows, errors = self.config.rows, []
        for _ in range(max(1, _REPORT_EVERY // rows)):
            errors.append(self._step())
        recent = np.array(self._recent or [(np.nan, np.nan, np.nan)])
        return {
            "episodes": float(self.episodes), "episode_return": float(recent[:, 0].mean()), "episode_value": float(recent[:, 1].mean()),
            "episode_steps": float(recent[:, 2].mean()), "exploration_rate": self._exploration,
            "cells_visited": float((self.visits.sum(axis=1) > 0).sum()), "mean_error": float(np.mean(errors)),
        }  # fmt: skip

    @property
    def _exploration(self) -> float:
        given = self.given
        done = self.steps / (given.exploration_share * self.config.steps) if given.exploration_share else 1.0
        return max(given.exploration_end, 1.0 - (1.0 - given.exploration_end) * done)

    def _step(self) -> float:
        env, given = self.env, self.given
        masks = env.action_masks()
        scores = np.where(masks == 1, self.values[self._cell], -np.inf)
        # Ties, as in cells never seen, go to chance.
        actions = (scores + 1e-9 * self._rng.random(scores.shape)).argmax(axis=1)
        drawn = np.where(masks == 1, self._rng.random(masks.shape), -1.0).argmax(axis=1)
        actions = np.where(self._rng.random(len(actions)) < self._exploration, drawn, actions)
        observations, rewards, terminated, truncated, info = env.step(actions)
        over = terminated | truncated
        after, following = observations, env.action_masks()
        if over.any():
            after, following = observations.copy(), following.copy()
            for row in np.flatnonzero(over).tolist():
                after[row], following[row] = info["final_obs"][row], info["final_info"]["action_mask"][row]
        best = np.where(following == 1, self.values[self.cells.of(after)], -np.inf).max(axis=1)
        targets = rewards + given.discount * np.where(terminated, 0.0, best)
        error = _learn(self.values, self.visits, self._cell, actions, targets, given.first_rate, given.last_rate)
        self.rows.add(rewards)
        for row in np.flatnonzero(over).tolist():
            total, length = self.rows.end(row)
            value = float(info["final_info"]["outcome"]["value"][row])
            self._recent = [*self._recent[-99:], (total, value, float(length))]
            self.episodes += 1
        self._observations, self._cell = observations, self.cells.of(observations)
        self.steps += self.config.rows
        return float(error)

    # --- keep and restore --------------------------------------------------------------------------------------------

    def keep(self) -> State:
        """Everything that the next update depends on."""
        chance, arrays = self.rows.keep()
        notes = {
            "chance": chance, "own": self._rng.bit_generator.state, "steps": self.steps, "episodes": self.episodes, "recent": self._recent,
        }  # fmt: skip
        return notes, arrays | {"values": self.values, "visits": self.visits, "last_obs": self._observations}

    def restore(self, state: State) -> None:
        """Go on from there. ValueError if it is not a state of such a training."""
        notes, arrays = state
        if arrays["values"].shape != self.values.shape or arrays["visits"].shape != self.values.shape:
            raise ValueError(f"its table has shape {arrays['values'].shape}, not {self.values.shape}")
        seen = self.rows.restore(notes["chance"], arrays)
        if not np.array_equal(seen, arrays["last_obs"]):
            raise ValueError("its episodes do not come out as they were: the simulator, or the machine, is another")
        self._observations, self._cell = seen, self.cells.of(seen)
        self.values[:], self.visits[:] = arrays["values"], arrays["visits"]
        self._rng.bit_generator.state = notes["own"]
        self.steps, self.episodes = notes["steps"], notes["episodes"]
        self._recent = [(one[0], one[1], one[2]) for one in notes["recent"]]


@kernel
def _learn(
    values: npt.NDArray[np.float64], visits: npt.NDArray[np.int64], cells: npt.NDArray[np.int64], actions: npt.NDArray[np.int64],
    targets: npt.NDArray[np.float64], first: float, last: float,
) -> float:  # fmt: skip
    """Row after row, so that many in one cell do not overshoot; the mean size of the errors before."""
    total = 0.0
    for i in range(len(cells)):
        cell, action = cells[i], actions[i]
        visits[cell, action] += 1
        rate = max(first / np.sqrt(visits[cell, action]), last)
        error = targets[i] - values[cell, action]
        values[cell, action] += rate * error
        total += abs(error)
    return total / max(len(cells), 1)
