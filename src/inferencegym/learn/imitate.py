"""Imitation: a network learns what a teacher would do where the network itself leads (DAgger, Ross et al. 2011), on knobs or on paging.

The first round the teacher drives; from then on the learner does, more and more, and the teacher says what it would have done
(`learn.lessons`). A teacher is any policy by name, a policy file, or a planner, which sees the simulator and so has what no live policy
has. After each round the network goes on from where it stood, over all lessons so far, by cross-entropy: knob by knob, or over the
actions that the mask allows.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from inferencegym.envs.actors import actor
from inferencegym.ground.archive import Array
from inferencegym.ground.errors import ConfigError, MissingExtraError
from inferencegym.ground.rng import stream
from inferencegym.learn.checkpoint import State
from inferencegym.learn.config import TrainConfig
from inferencegym.learn.lessons import Class, Lessons
from inferencegym.learn.mlp import ACTIVATION, Mlp, choices_of, log_odds
from inferencegym.learn.settings import Imitate
from inferencegym.policies.heads import HEADS, find_head

try:
    import torch
except ImportError as error:
    raise MissingExtraError("train", "training a network") from error

_TAUGHT = ("observations", "masks", "labels")


class ImitationLearner:
    """Learns a network from a teacher; deterministic in its seed, for any number of processes."""

    kind = "network"
    activation = ACTIVATION
    figures: tuple[str, ...] = ("teacher_share", "lessons", "agreement", "loss")

    def __init__(self, config: TrainConfig, task: Any, *, workers: int | None = None) -> None:
        given = config.settings
        assert isinstance(given, Imitate)
        surface = task.surface.name
        if config.encoding != HEADS[surface][0]:
            raise ConfigError("encoding", f"imitate writes no '{config.encoding}'", allowed=HEADS[surface][0])
        # An unknown teacher is an error here, not in a process.
        actor(given.teacher, task)
        self.config, self.given, self.task = config, given, task
        self.steps = self.rounds = self.episodes = 0
        sizes = find_head(surface, config.encoding).sizes
        self._offsets = np.cumsum([0, *sizes]).tolist()
        torch.manual_seed(config.seed)
        self._mlp = Mlp((len(task.surface.columns), *given.hidden, self._offsets[-1]))
        self._class = Class(
            config.task, given.teacher, given.labels,
            seed=config.seed, scenarios=config.scenarios, workers=workers, randomise=config.randomise,
        )  # fmt: skip
        self._taught: list[Lessons] = []

    def update(self) -> dict[str, float]:
        """A round: lessons, and what is learned from all of them."""
        given = self.given
        share = given.beta**self.rounds
        found = self._class.lessons(self._mlp.arrays(), self.rounds, given.episodes, share)
        if not self.rounds:
            self._mlp.normalise(found.observations, self.task.surface.name)
            agreement = float("nan")
        else:
            agreement = self._agreement(found)
        self._taught.append(found)
        loss = self._learn(Lessons.joined(self._taught))
        self.rounds += 1
        self.steps += found.steps
        self.episodes += len(found.values)
        return {
            "episodes": float(self.episodes), "episode_return": float("nan"), "episode_value": float(found.values.mean()),
            "episode_steps": found.steps / len(found.values), "teacher_share": share,
            "lessons": float(sum(len(one.labels) for one in self._taught)), "agreement": agreement, "loss": loss,
        }  # fmt: skip

    def arrays(self) -> dict[str, Array]:
        """The policy as it stands; see `policies.trained.load`."""
        return self._mlp.arrays()

    def keep(self) -> State:
        """Everything that the next round depends on."""
        arrays = {f"policy.{name}": array for name, array in self._mlp.arrays().items()}
        if self._taught:
            taught = Lessons.joined(self._taught)
            arrays |= {f"taught.{name}": getattr(taught, name) for name in _TAUGHT}
        return {"steps": self.steps, "rounds": self.rounds, "episodes": self.episodes}, arrays

    def restore(self, state: State) -> None:
        """Go on from there. ValueError or KeyError if it is not a state of such a training."""
        notes, arrays = state
        self.steps, self.rounds, self.episodes = (int(notes[name]) for name in ("steps", "rounds", "episodes"))
        self._mlp.put({name.removeprefix("policy."): array for name, array in arrays.items() if name.startswith("policy.")})  # fmt: skip
        self._taught = []
        if self.rounds:
            observations, masks, labels = (arrays[f"taught.{name}"] for name in _TAUGHT)
            self._taught = [Lessons(observations, masks, labels, np.zeros(0), 0)]

    # --- inside ------------------------------------------------------------------------------------------------------

    def _agreement(self, found: Lessons) -> float:
        """Share of the new lessons whose label the network had chosen, all parts, before it learned from them."""
        with torch.no_grad():
            logs = log_odds(self._mlp.net(self._mlp.inputs(found.observations)), torch.from_numpy(found.masks == 0), self._offsets)  # fmt: skip
            same = choices_of(logs, self._offsets).numpy() == found.labels
        return float(same.all(axis=1).mean())

    def _learn(self, taught: Lessons) -> float:
        """Cross-entropy over everything taught; returns the last pass's mean."""
        given = self.given
        chance = stream(self.config.seed, f"imitate/fit/{self.rounds}")
        inputs = self._mlp.inputs(taught.observations)
        barred = torch.from_numpy(taught.masks == 0)
        targets = torch.from_numpy(self._targets(taught))
        optimiser = torch.optim.Adam(self._mlp.net.parameters(), given.learning_rate)
        sums = 0.0
        for _ in range(given.epochs):
            order, sums = chance.permutation(len(inputs)), 0.0
            for at in range(0, len(order), given.batch_size):
                rows = torch.from_numpy(order[at : at + given.batch_size])
                logs = log_odds(self._mlp.net(inputs[rows]), barred[rows], self._offsets)
                loss = -(targets[rows] * logs).sum(dim=1).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                sums += float(loss.detach()) * len(rows)
        return sums / len(inputs)

    def _targets(self, taught: Lessons) -> Array:
        """float32[n, m]: the label's choice, less what `smoothing` gives to all that was allowed."""
        targets = np.zeros(taught.masks.shape, np.float32)
        rows = np.arange(len(targets))
        for part, (start, end) in enumerate(pairwise(self._offsets)):
            allowed = taught.masks[:, start:end] == 1
            targets[:, start:end] = self.given.smoothing * allowed / allowed.sum(axis=1, keepdims=True)
            targets[rows, start + taught.labels[:, part]] += 1.0 - self.given.smoothing
        return targets
