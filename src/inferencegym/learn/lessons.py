"""What a teacher would do where somebody else drives: the decisions that `learn.imitate` learns from (DAgger, Ross et al. 2011), episode by episode.

A teacher with a memory sees the whole episode, whoever drives. A planner is slow, so it is asked only at some windows; where it drives on
knobs, its setting stands until it is asked again. A teacher sees the deployment as it is; the learner sees what it will be shown, which
may be late (`learn.delay`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferencegym.decision.columns import Float32s, Floats, Masks
from inferencegym.decision.knobs import GRID, OFFSETS
from inferencegym.decision.paging import NOTHING
from inferencegym.envs import catalogue
from inferencegym.envs.actors import actor
from inferencegym.envs.batch import Task
from inferencegym.envs.splits import scenario
from inferencegym.ground.archive import Array
from inferencegym.ground.rng import stream
from inferencegym.learn.decisions import Ints, settled
from inferencegym.learn.delay import History
from inferencegym.learn.randomise import Randomise
from inferencegym.learn.varied import machine_of
from inferencegym.learn.workers import Workers
from inferencegym.policies.heads import HEADS
from inferencegym.policies.trained import Notes, build

_GRIDS = tuple(np.array(values) for values in GRID.values())
_AS_IT_IS = Randomise()


@dataclass(frozen=True, slots=True)
class Lessons:
    """n decisions that a teacher was asked about."""

    observations: Float32s
    """float32[n, k]: what the learner was shown."""
    masks: Masks
    """int8[n, m]: what was allowed."""
    labels: Ints
    """int64[n, parts]: what the teacher chose of each part, counted within it."""
    values: Floats
    """float64[episodes]: what the drives came to."""
    steps: int
    """Decisions that were simulated for it."""

    @classmethod
    def joined(cls, parts: Sequence[Lessons]) -> Lessons:
        """All of them, in order."""
        return cls(
            np.concatenate([part.observations for part in parts]),
            np.concatenate([part.masks for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.values for part in parts]),
            sum(part.steps for part in parts),
        )


class School:
    """One teacher on one task; see `lesson`."""

    def __init__(self, task: Task, teacher: Any, labels: int, randomise: Randomise = _AS_IT_IS) -> None:
        """`labels`: decisions of an episode, on average, that are learned from; `randomise`: what varies, the teacher knowing all of it."""
        self.task, self.teacher, self.labels, self.randomise = task, teacher, labels, randomise
        self._paging = task.surface.name == "paging"
        self._batches: dict[str, Any] = {}
        self._news = History(task.surface.name, 1, randomise.delay[1])

    def lesson(self, arrays: dict[str, Array] | None, number: int, chance: np.random.Generator) -> Lessons:
        """Play scenario `number`; the network of `arrays` drives, or, if None, the teacher. `chance` draws what is learned from."""
        task, teacher, batch = self.task, self.teacher, self._batch_of(number)
        player = None if arrays is None else build(_notes(task.surface.name), arrays)
        asked = chance.random(task.steps) < self.labels / task.steps
        # An episode without a lesson would be played for nothing.
        asked[int(chance.integers(task.steps))] = True
        batch.start(0, number)
        self._news.begin(0, batch.observations[0], self.randomise.draw(number).delay)
        teacher.start(number)
        plans = hasattr(teacher, "decide")
        found: list[tuple[Float32s, Masks, Ints]] = []
        action: Any = None
        steps = 0
        while not (batch.terminated[0] or batch.truncated[0]):
            seen, mask = batch.observations[0].copy(), batch.masks[0].copy()
            if not plans:
                action = task.surface.dense(teacher.act(seen.copy(), mask.copy()))
            elif asked[steps] or (player is None and (self._paging or action is None)):
                action = task.surface.dense(teacher.decide(batch))
            shown = self._news.shown()
            if asked[steps]:
                found.append((shown[0], mask, labels_of(task, action, seen, mask)))
            if player is None:
                batch.actions[0] = action
            else:
                batch.actions[:] = player.head.rows(player.scores_of(shown), shown, mask[None])
            batch.step()
            self._news.add(batch.observations)
            steps += 1
        values = np.array([batch.outcome(0).value])
        if not found:
            return _nothing(task, values, steps)
        observations, masks, labels = (np.stack(column) for column in zip(*found, strict=True))
        return Lessons(observations, masks, labels, values, steps)

    def _batch_of(self, number: int) -> Any:
        machine = machine_of(self.task, self.randomise, number)
        if machine.name not in self._batches:
            self._batches[machine.name] = machine.batch(1)
        return self._batches[machine.name]


def labels_of(task: Task, action: Any, observation: Float32s, mask: Masks) -> Ints:
    """int64[parts]: a dense action as choices of the grid, the nearest that the mask allows; on paging what is not allowed does nothing."""
    if task.surface.name == "paging":
        return np.array([int(action) if mask[int(action)] else NOTHING])
    levers = settled(task, np.asarray(action)[None], observation[None])[0]
    found = []
    for knob, grid in enumerate(_GRIDS):
        allowed = mask[OFFSETS[knob] : OFFSETS[knob + 1]] == 1
        found.append(int(np.where(allowed, np.abs(grid - levers[knob]), np.inf).argmin()))
    return np.array(found)


class Class:
    """Schools in processes of their own. What they teach depends on seed, round and episode only, never on how many they are."""

    def __init__(
        self, task: str, teacher: str, labels: int, *, seed: int, scenarios: int, workers: int | None = None, randomise: Randomise = _AS_IT_IS
    ) -> None:  # fmt: skip
        """`task`: name or file, since each process makes its own; `scenarios`: training scenarios to draw from."""
        self.seed, self.scenarios = seed, scenarios
        self._workers = Workers(_school, (task, teacher, labels, randomise), workers)

    def lessons(self, arrays: dict[str, Array], number: int, episodes: int, share: float) -> Lessons:
        """Round `number`: so many episodes, of which the teacher drives a share, drawn."""
        jobs = [(arrays, self.seed, number, episode, self.scenarios, share) for episode in range(episodes)]
        return Lessons.joined(list(self._workers.map(_work, jobs)))


def _school(task: str, teacher: str, labels: int, randomise: Randomise) -> School:
    found = catalogue.task(task)
    return School(found, actor(teacher, found), labels, randomise)


def _work(school: School, job: tuple[dict[str, Array], int, int, int, int, float]) -> Lessons:
    arrays, seed, number, episode, scenarios, share = job
    chance = stream(seed, f"imitate/{number}/{episode}")
    index = int(chance.integers(scenarios))
    drives = chance.random() < share
    return school.lesson(None if drives else arrays, scenario("train", index), chance)


def _nothing(task: Task, values: Floats, steps: int) -> Lessons:
    """Of an episode that ended before its first question."""
    parts = 1 if task.surface.name == "paging" else len(GRID)
    wide, masked = len(task.surface.columns), task.surface.mask_size
    return Lessons(np.zeros((0, wide), np.float32), np.zeros((0, masked), np.int8), np.zeros((0, parts), np.int64), values, steps)  # fmt: skip


def _notes(surface: str) -> Notes:
    return Notes("network", surface, HEADS[surface][0], "", "", "imitate", 0, "", 0, activation="tanh")
