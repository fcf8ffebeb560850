"""Examples for a language model: situations and what a good policy did in them, drawn from training scenarios, the same ones every time.

Nothing here looks at validation or test scenarios. A draw takes one decision of each kind of action in turn, the commonest kind first, so
that a few examples show different actions, not the same one again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.decision.columns import Float32s, Masks
from inferencegym.envs import actors
from inferencegym.envs.batch import Batch, Task
from inferencegym.envs.episode import record
from inferencegym.envs.openenv.llm_prompt import answer, situation
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.rng import stream

#: Most examples; more would fill a small model's context.
MOST_SHOTS = 64
#: Training scenarios that examples are drawn from.
SCENARIOS = (0, 1)


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision of an episode: what was seen, what was possible, what was done."""

    observation: Float32s
    mask: Masks
    action: npt.NDArray[Any]
    """Dense: int64[] (paging) or float64[6] (knobs; NaN leaves a knob as it is)."""


class Watched:
    """An actor whose every decision is kept; plays as a planner does, so that it is handed the batch with its mask."""

    def __init__(self, actor: Any, task: Task) -> None:
        self._actor, self._task, self.name = actor, task, str(actor.name)
        self.decisions: list[Decision] = []

    def start(self, seed: int) -> None:
        """As the actor begins."""
        self._actor.start(seed)

    def decide(self, batch: Batch) -> Any:
        """The actor's action."""
        seen, mask = batch.observations[0].copy(), batch.masks[0].copy()
        planner = getattr(self._actor, "decide", None)
        action = planner(batch) if planner else self._actor.act(seen, mask)
        self.decisions.append(Decision(seen, mask, np.asarray(self._task.surface.dense(action))))
        return action


def guide_of(task: Task) -> str:
    """Who gives the examples where nobody is named: the trained policy that ships for the task, else its best static configuration."""
    names = actors.actor_names(task)
    for name in (actors.LEARNED, actors.BEST_STATIC):
        if name in names:
            return name
    raise ConfigError(
        "guide",
        f"no trained policy and no best static configuration come with '{task.name}'",
        allowed=f"one of {', '.join(names)}",
    )


def decisions(task: Task, guide: str, scenarios: Sequence[int] = SCENARIOS) -> list[Decision]:
    """Every decision of a policy in episodes of the *training* split."""
    watched = Watched(actors.actor(guide, task), task)
    for scenario in scenarios:
        record(task, watched, split="train", scenario=scenario)
    return watched.decisions


def drawn(found: Sequence[Decision], shots: int, seed: int = 0) -> list[Decision]:
    """`shots` of them, without repeats: kinds of action in turn, the commonest first, each drawn by the stream `llm.shots`."""
    rng = stream(seed, "llm.shots")
    kinds: dict[bytes, list[Decision]] = {}
    for one in found:
        kinds.setdefault(one.action.tobytes(), []).append(one)
    groups = sorted(kinds.values(), key=len, reverse=True)
    chosen: list[Decision] = []
    while len(chosen) < min(shots, len(found)):
        for group in groups:
            if group and len(chosen) < shots:
                chosen.append(group.pop(int(rng.random() * len(group))))
    return chosen


def examples(task: Task, shots: int, guide: str | None = None) -> list[tuple[str, str]]:
    """(situation, answer) pairs in the words of `llm_prompt`; the same for the same task, number and guide."""
    if not 0 <= shots <= MOST_SHOTS:
        raise ConfigError("shots", f"{shots} is out of range", allowed=f"0..{MOST_SHOTS}")
    if shots == 0:
        return []
    surface = task.surface
    return [
        (situation(surface, one.observation, one.mask), answer(surface, surface.action(one.action), one.observation))
        for one in drawn(decisions(task, guide or guide_of(task)), shots)
    ]
