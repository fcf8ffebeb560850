"""What a policy decided, and on what it saw: the material of explanations and of distilled trees.

A policy that only scores (`policies.trained`) decides many rows at once. Any other is asked one by one, in the order of its episodes, with its
memory started anew, so that rules with a memory can be explained too.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.decision.columns import Float32s, Floats, Masks
from inferencegym.decision.encodings import in_force
from inferencegym.envs.batch import Task
from inferencegym.ground.errors import ConfigError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Decisions:
    """n decisions of one policy, episode by episode."""

    observations: Float32s
    """float32[n, k]: what was seen."""
    masks: Masks
    """int8[n, m]: what was allowed."""
    choices: npt.NDArray[Any]
    """What the policy chose on it: int64[n] (paging) or float64[n, 6] (knobs; one that was to be left is what was in force)."""
    episodes: Ints
    """int64[n]: number of the episode, ascending."""
    rewards: Floats
    """float64[n]: of what was then done, which is the choice unless another policy played."""
    values: Floats
    """float64[episodes]: what each episode came to."""

    def __len__(self) -> int:
        return len(self.observations)

    def take(self, rows: Ints) -> Decisions:
        """Some of them."""
        return Decisions(
            self.observations[rows],
            self.masks[rows],
            self.choices[rows],
            self.episodes[rows],
            self.rewards[rows],
            self.values,
        )

    @classmethod
    def joined(cls, parts: Sequence[Decisions]) -> Decisions:
        """All of them; episodes are numbered on."""
        starts = np.cumsum([0, *(len(part.values) for part in parts)])
        return cls(
            np.concatenate([part.observations for part in parts]),
            np.concatenate([part.masks for part in parts]),
            np.concatenate([part.choices for part in parts]),
            np.concatenate([part.episodes + start for part, start in zip(parts, starts, strict=False)]),
            np.concatenate([part.rewards for part in parts]),
            np.concatenate([part.values for part in parts]),
        )


def play(task: Task, policy: Any, scenarios: Sequence[int], *, player: Any = None) -> Decisions:
    """Whole episodes on scenarios (numbers as `envs.splits.scenario` gives), side by side. `player`: who acts instead, while the policy only says what it would do."""
    if not hasattr(policy, "act"):
        raise ConfigError("policy", f"'{policy.name}' decides by trying out the simulator, not by what it sees", allowed="a policy, not a planner")  # fmt: skip
    n = len(scenarios)
    batch = task.batch(n)
    for row, number in enumerate(scenarios):
        batch.start(row, number)
    ask, act = _asked(policy, task, n), None if player is None else _asked(player, task, n)
    seen: list[tuple[npt.NDArray[Any], ...]] = []
    live = np.ones(n, np.bool_)
    values = np.zeros(n)
    while live.any():
        observations, masks = batch.observations.copy(), batch.masks.copy()
        choices = ask(observations, masks)
        batch.actions[:] = choices if act is None else act(observations, masks)
        batch.step()
        rows = np.flatnonzero(live)
        seen.append((rows, observations[rows], masks[rows], choices[rows], batch.rewards[rows].copy()))
        for row in np.flatnonzero(batch.terminated | batch.truncated).tolist():
            if live[row]:
                values[row], live[row] = batch.outcome(row).value, False
            # A row that is done goes round again until all are.
            batch.start(row, scenarios[row])
    rows, observations, masks, choices, rewards = (np.concatenate(column) for column in zip(*seen, strict=True))
    order = np.argsort(rows, kind="stable")
    found = settled(task, choices[order], observations[order])
    return Decisions(observations[order], masks[order], found, rows[order], rewards[order], values)


def choices_of(task: Task, policy: Any, decisions: Decisions, observations: Float32s) -> npt.NDArray[Any]:
    """What the policy would have chosen in the same order, had it seen these observations, float32[n, k], instead."""
    if _scores(policy):
        found = policy.head.rows(policy.scores_of(observations), observations, decisions.masks)
    else:
        found = np.zeros_like(decisions.choices)
        last = -1
        for row, episode in enumerate(decisions.episodes.tolist()):
            if episode != last:
                policy.start(episode)
                last = episode
            found[row] = task.surface.dense(policy.act(observations[row].copy(), decisions.masks[row].copy()))
    # What a left knob stands at is read from what was really seen.
    return settled(task, found, decisions.observations)


def settled(task: Task, choices: npt.NDArray[Any], observations: Float32s) -> npt.NDArray[Any]:
    """Knobs that were to be left as they are, as what is in force; paging's actions as they are."""
    if task.surface.name == "paging":
        return choices
    return np.where(np.isnan(choices), in_force(observations), choices)


def _scores(policy: Any) -> bool:
    return hasattr(policy, "scores_of") and hasattr(policy, "head")


def _asked(policy: Any, task: Task, n: int) -> Any:
    """A function from the n rows' observations and masks to their dense choices."""
    if _scores(policy):

        def at_once(observations: Float32s, masks: Masks) -> npt.NDArray[Any]:
            found: npt.NDArray[Any] = policy.head.rows(policy.scores_of(observations), observations, masks)
            return found

        return at_once
    # A row has a policy of its own: it may remember.
    own = [deepcopy(policy) for _ in range(n)]
    for episode, one in enumerate(own):
        one.start(episode)

    def in_turn(observations: Float32s, masks: Masks) -> npt.NDArray[Any]:
        return np.stack([task.surface.dense(one.act(o, m)) for one, o, m in zip(own, observations, masks, strict=True)])

    return in_turn
