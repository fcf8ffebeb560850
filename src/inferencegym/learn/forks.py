"""What each knob's other settings would have earned, measured on forks of the running deployment: the teacher of `learn.forklearner`.

A policy plays a training scenario. At some windows the deployment is copied; every copy sets one knob otherwise for one window, then all go on as
the policy would, through the same traffic. What a copy earns more than the one that followed the policy is that setting's advantage. Copies
share their future, so chance cancels out: one measurement says what thousands of episodes' returns would.

Only training scenarios are looked into; the policy itself sees what any policy sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from inferencegym.decision.columns import Float32s, Floats, Masks
from inferencegym.decision.knobs import GRID, LEVERS, OFFSETS
from inferencegym.envs import catalogue
from inferencegym.envs.llmserve import ServeBatch
from inferencegym.envs.serve_planner import unfinished
from inferencegym.envs.serve_task import ServeTask
from inferencegym.envs.splits import scenario
from inferencegym.ground.archive import Array
from inferencegym.ground.rng import stream
from inferencegym.learn.delay import History
from inferencegym.learn.randomise import Randomise
from inferencegym.learn.settings import Forks
from inferencegym.learn.varied import machine_of
from inferencegym.learn.workers import Workers
from inferencegym.policies.heads import GridHead
from inferencegym.policies.trained import Notes, Trained, build

_GRIDS = tuple(np.array(values) for values in GRID.values())
#: Which knob each of the 36 choices is of, and the value it sets.
_KNOB = np.repeat(np.arange(len(LEVERS)), [len(values) for values in _GRIDS])
_VALUE = np.concatenate(_GRIDS)
_AS_IT_IS = Randomise()


@dataclass(frozen=True, slots=True)
class Measured:
    """n situations of one policy, and what was found on their forks."""

    observations: Float32s
    """float32[n, k]."""
    masks: Masks
    """int8[n, 36]."""
    advantages: Float32s
    """float32[n, 36]: value above following the policy; 0 where nothing was tried."""
    weights: Float32s
    """float32[n, 36]: one over the chance with which a choice was tried; 0 where it was not."""
    values: Floats
    """float64[episodes]: what the policy, its choices drawn, earned in each."""
    windows: int
    """Windows that were simulated for it."""

    @classmethod
    def joined(cls, parts: Sequence[Measured]) -> Measured:
        """All of them, in order."""
        return cls(
            np.concatenate([part.observations for part in parts]),
            np.concatenate([part.masks for part in parts]),
            np.concatenate([part.advantages for part in parts]),
            np.concatenate([part.weights for part in parts]),
            np.concatenate([part.values for part in parts]),
            sum(part.windows for part in parts),
        )


class Teacher:
    """Measures advantages on one task; see `measure`."""

    def __init__(self, task: ServeTask, settings: Forks, randomise: Randomise = _AS_IT_IS) -> None:
        self.task, self.settings, self.randomise = task, settings, randomise
        self._head = GridHead()
        self._machines: dict[str, tuple[ServeBatch, ServeBatch]] = {}
        self._news, self._copied_news = (History("knobs", rows, randomise.delay[1]) for rows in (1, 1 + OFFSETS[-1]))

    def measure(self, arrays: dict[str, Array], number: int, chance: np.random.Generator) -> Measured:
        """Play scenario `number` (as `envs.splits.scenario` counts) with the network of `arrays`, its choices drawn by `chance`."""
        policy = build(_notes(), arrays)
        main, given = self._on(number), self.settings
        main.start(0, number)
        self._news.begin(0, main.observations[0], self.randomise.draw(number).delay)
        marked = chance.random(self.task.steps) < given.measured_windows / self.task.steps
        found: list[tuple[Float32s, Masks, Float32s, Float32s]] = []
        windows = self.task.steps
        for window in range(self.task.steps):
            seen, masks = self._news.shown(), main.masks
            logits = np.where(masks == 1, policy.scores_of(seen), np.float32(-np.inf))
            if marked[window]:
                advantages, weights, spent = self._advantages(policy, logits[0], chance)
                found.append((seen[0].copy(), masks[0].copy(), advantages, weights))
                windows += spent
            drawn = logits + chance.gumbel(size=logits.shape).astype(np.float32)
            main.actions[:] = self._head.rows(drawn, seen, masks)
            main.step()
            self._news.add(main.observations)
        values = main.value_terms.sum(axis=1)
        if not found:
            wide = (0, OFFSETS[-1])
            none = np.zeros(wide, np.float32)
            return Measured(
                np.zeros((0, seen.shape[1]), np.float32), np.zeros(wide, np.int8), none, none, values, windows
            )
        seen_at, masked, advantages, weights = (np.stack(column) for column in zip(*found, strict=True))
        return Measured(seen_at, masked, advantages, weights, values, windows)

    def _on(self, number: int) -> ServeBatch:
        """The batch of the machine that the scenario runs on, and with it the one of its copies."""
        machine = machine_of(self.task, self.randomise, number)
        if machine.name not in self._machines:
            self._machines[machine.name] = machine.batch(1), machine.batch(1 + OFFSETS[-1])
        self._main, self._copies = self._machines[machine.name]
        return self._main

    def _advantages(
        self, policy: Trained, logits: Float32s, chance: np.random.Generator
    ) -> tuple[Float32s, Float32s, int]:
        main, copies, news, given = self._main, self._copies, self._copied_news, self.settings
        own = self._head.rows(logits[None], main.observations, main.masks)[0]
        odds = _odds(logits)
        chances = np.where(odds > 0.0, np.clip(given.eagerness * odds, given.least_chance, 1.0), 0.0)
        others = own[_KNOB] != _VALUE
        tried = np.flatnonzero(others & (chance.random(len(odds)) < chances))
        n = 1 + len(tried)
        copies.copy_from(main, 0, n)
        news.copy_from(self._news, 0, n)
        first = np.tile(own, (n, 1))
        first[np.arange(1, n), _KNOB[tried]] = _VALUE[tried]
        horizon = min(given.horizon, self.task.steps - int(main.windows_done[0]))
        copies.actions[:n] = first
        copies.step()
        for _ in range(horizon - 1):
            news.add(copies.observations)
            seen = news.shown()[:n]
            copies.actions[:n] = self._head.rows(policy.scores_of(seen), seen, copies.masks[:n])
            copies.step()
        worth = (copies.value_terms.sum(axis=1) + unfinished(copies))[:n]
        advantages = np.zeros(len(odds), np.float32)
        weights = np.zeros(len(odds), np.float32)
        advantages[tried] = worth[1:] - worth[0]
        weights[tried] = 1.0 / chances[tried]
        # What the policy does itself is known to be worth nothing more.
        weights[~others] = 1.0
        return advantages, weights, n * horizon


class Crew:
    """Teachers in processes of their own. What they find depends on seed, update and episode only, never on how many they are."""

    def __init__(
        self, task: str, settings: Forks, seed: int, scenarios: int, workers: int | None = None, randomise: Randomise = _AS_IT_IS
    ) -> None:  # fmt: skip
        """`task`: name or file, since each process makes its own; `workers`: unset, one for each processor this process may use."""
        self.task, self.settings, self.seed, self.scenarios = task, settings, seed, scenarios
        self._workers = Workers(_teacher, (task, settings, randomise), workers)

    def measure(self, arrays: dict[str, Array], update: int) -> Measured:
        """The update's episodes, all played and measured by the policy of `arrays`."""
        jobs = [(arrays, self.seed, update, episode, self.scenarios) for episode in range(self.settings.episodes)]
        return Measured.joined(list(self._workers.map(_work, jobs)))


def _teacher(task: str, settings: Forks, randomise: Randomise) -> Teacher:
    found: Any = catalogue.task(task)
    return Teacher(found, settings, randomise)


def _work(teacher: Teacher, job: tuple[dict[str, Array], int, int, int, int]) -> Measured:
    arrays, seed, update, episode, scenarios = job
    chance = stream(seed, f"forks/{update}/{episode}")
    return teacher.measure(arrays, scenario("train", int(chance.integers(scenarios))), chance)


def _odds(logits: Float32s) -> Floats:
    """float64[36]: the chance of every choice among its knob's; 0 where it is masked."""
    odds = np.zeros(len(logits))
    for start, end in pairwise(OFFSETS):
        part = logits[start:end].astype(np.float64)
        grown = np.exp(part - part.max())
        odds[start:end] = grown / grown.sum()
    return odds


def _notes() -> Notes:
    return Notes("network", "knobs", "multidiscrete", "", "", "forks", 0, "", 0, activation="tanh")
