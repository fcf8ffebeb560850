"""Policy iteration on forks: a network that learns from measured advantages (`learn.forks`), starting from the best setting that never changes.

Each update plays some episodes and measures; then the network moves towards what was found better, as far as a bound on the change allows: with
odds p(v | s) of each knob's settings, it maximises the mean of sum p A / spread - KL(p, old p) / step_size. It is PPO's aim with the
advantages of all settings known instead of one guessed.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from inferencegym.decision.columns import Floats
from inferencegym.decision.encodings import nearest
from inferencegym.decision.knobs import COLUMNS, OFFSETS
from inferencegym.envs.serve_task import ServeTask
from inferencegym.ground.archive import Array
from inferencegym.ground.errors import ConfigError, MissingExtraError
from inferencegym.ground.rng import stream
from inferencegym.learn.checkpoint import State
from inferencegym.learn.config import TrainConfig
from inferencegym.learn.first import first_setting
from inferencegym.learn.forks import Crew, Measured
from inferencegym.learn.mlp import ACTIVATION, Mlp, choices_of, log_odds, taken_over
from inferencegym.learn.settings import Forks

try:
    import torch
except ImportError as error:
    raise MissingExtraError("train", "training a network") from error

_CLIP = 4.0
_MEASURED = ("observations", "masks", "advantages", "weights")


class ForkLearner:
    """Learns a network on knobs; deterministic in its seed, for any number of processes."""

    kind = "network"
    activation = ACTIVATION
    figures: tuple[str, ...] = ("situations", "found_per_window", "spread", "kl", "changed_choices")

    def __init__(self, config: TrainConfig, task: Any, *, workers: int | None = None) -> None:
        given = config.settings
        assert isinstance(given, Forks)
        if not isinstance(task, ServeTask) or config.encoding != "multidiscrete":
            raise ConfigError(
                "algorithm", "forks learns knobs on their grid", allowed="a task of LLMServe, encoding multidiscrete"
            )
        self.config, self.settings, self.task = config, given, task
        self.steps = self.updates = self.episodes = 0
        self._crew = Crew(config.task, given, config.seed, config.scenarios, workers, config.randomise)
        self._recent: deque[Measured] = deque(maxlen=given.remembered)
        torch.manual_seed(config.seed)
        self._mlp = Mlp((len(COLUMNS), *given.hidden, OFFSETS[-1]))
        learned = taken_over(given.start, "knobs", config.encoding, given.hidden)
        self._given_frame = learned is not None
        if learned is None:
            self._begin_at(first_setting(task, given.start))
        else:
            self._mlp.put(learned)
            self._sharpen()

    # --- what a training asks of a learner ---------------------------------------------------------------------------

    def update(self) -> dict[str, float]:
        """Measure, and move."""
        found = self._crew.measure(self.arrays(), self.updates)
        self.steps += found.windows
        if not self.updates and not self._given_frame:
            # The first policy chooses the same thing everywhere, so that this changes nothing yet.
            self._mlp.normalise(found.observations, "knobs")
        self._recent.append(found)
        told = self._move(Measured.joined(list(self._recent)))
        self.updates += 1
        best = np.where(found.weights > 0, found.advantages, 0.0).max(axis=1)
        self.episodes += len(found.values)
        account = {
            "episodes": float(self.episodes), "episode_return": float("nan"), "episode_value": float(found.values.mean()),
            "episode_steps": float(self.task.steps), "situations": float(len(found.observations)), "found_per_window": float(best.mean()),
        }  # fmt: skip
        return account | told

    def arrays(self) -> dict[str, Array]:
        """The policy as it stands; see `policies.trained.load`."""
        return self._mlp.arrays()

    def keep(self) -> State:
        """Everything that the next update depends on."""
        arrays = {f"policy.{name}": array for name, array in self.arrays().items()}
        for i, found in enumerate(self._recent):
            for name in _MEASURED:
                arrays[f"recent.{i}.{name}"] = getattr(found, name)
        return {
            "steps": self.steps,
            "updates": self.updates,
            "episodes": self.episodes,
            "recent": len(self._recent),
        }, arrays

    def restore(self, state: State) -> None:
        """Go on from there. ValueError if it is not a state of such a training."""
        notes, arrays = state
        self.steps, self.updates = int(notes["steps"]), int(notes["updates"])
        self.episodes = int(notes["episodes"])
        self._mlp.put({name.removeprefix("policy."): array for name, array in arrays.items() if name.startswith("policy.")})  # fmt: skip
        self._recent.clear()
        for i in range(int(notes["recent"])):
            part = {name: arrays[f"recent.{i}.{name}"] for name in _MEASURED}
            self._recent.append(Measured(**part, values=np.zeros(0), windows=0))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _begin_at(self, setting: Floats) -> None:
        """Choose `setting` everywhere, with some doubt."""
        last = self._mlp.linear[-1]
        with torch.no_grad():
            last.weight.mul_(0.05)
            last.bias.zero_()
            for knob, place in enumerate(nearest(setting[None])[0].tolist()):
                last.bias[OFFSETS[knob] + place] = self.settings.confidence

    def _sharpen(self) -> None:
        """Surer of the same choices: they are drawn while advantages are measured, and who was only taught leaves wide odds."""
        last = self._mlp.linear[-1]
        with torch.no_grad():
            last.weight.mul_(self.settings.confidence)
            last.bias.mul_(self.settings.confidence)

    def _move(self, found: Measured) -> dict[str, float]:
        given = self.settings
        chance = stream(self.config.seed, f"forks/fit/{self.updates}")
        inputs = self._mlp.inputs(found.observations)
        known = found.weights > 0
        spread = float(found.advantages[known & (found.advantages != 0)].std()) or 1.0
        gains = torch.from_numpy(np.clip(found.advantages / spread, -_CLIP, _CLIP) * found.weights)
        barred = torch.from_numpy(found.masks == 0)
        with torch.no_grad():
            old = log_odds(self._mlp.net(inputs), barred, OFFSETS)
        optimiser = torch.optim.Adam(self._mlp.net.parameters(), given.learning_rate)
        moved = 0.0
        for _ in range(given.epochs):
            order = chance.permutation(len(inputs))
            for at in range(0, len(order), given.batch_size):
                rows = torch.from_numpy(order[at : at + given.batch_size])
                logs = log_odds(self._mlp.net(inputs[rows]), barred[rows], OFFSETS)
                odds = logs.exp()
                change = (odds * (logs - old[rows]).masked_fill(barred[rows], 0.0)).sum(dim=1).mean()
                loss = change / given.step_size - (odds * gains[rows]).sum(dim=1).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                moved = float(change.detach())
        with torch.no_grad():
            now = log_odds(self._mlp.net(inputs), barred, OFFSETS)
        return {
            "spread": spread,
            "kl": moved,
            "changed_choices": float((choices_of(now, OFFSETS) != choices_of(old, OFFSETS)).double().mean()),
        }
