"""Policy iteration on forks: a network that learns from measured advantages (`learn.forks`), starting from the best setting that never changes.

Each update plays some episodes and measures; then the network moves towards what was found better, as far as a bound on the change allows: with
odds p(v | s) of each knob's settings, it maximises the mean of sum p A / spread - KL(p, old p) / step_size. It is PPO's aim with the
advantages of all settings known instead of one guessed.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Any

import numpy as np

from inferencegym.decision.columns import Floats
from inferencegym.decision.encodings import AT, nearest
from inferencegym.decision.knobs import COLUMNS, OFFSETS
from inferencegym.envs.serve_task import ServeTask
from inferencegym.ground.errors import ConfigError, MissingExtraError
from inferencegym.ground.rng import stream
from inferencegym.learn.checkpoint import State
from inferencegym.learn.config import Forks, TrainConfig
from inferencegym.learn.first import first_setting
from inferencegym.learn.forks import Crew, Measured

try:
    import torch
    from torch import nn
except ImportError as error:
    raise MissingExtraError("train", "training a network") from error

#: Columns that show what was chosen, or time; they are scaled alike, whatever was seen of them.
_PLAIN = (*COLUMNS.names[AT], "pause_left_s", "window_s", "snapshot_age_s", "episode_fraction")
_PLAIN_SCALE = 2.0
_LEAST_DEVIATION = 0.02
_CLIP = 4.0
_MEASURED = ("observations", "masks", "advantages", "weights")


class ForkLearner:
    """Learns a network on knobs; deterministic in its seed, for any number of processes."""

    kind = "network"
    activation = "tanh"
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
        self._crew = Crew(config.task, given, config.seed, config.scenarios, workers)
        self._recent: deque[Measured] = deque(maxlen=given.remembered)
        torch.manual_seed(config.seed)
        width = len(COLUMNS)
        self._mean, self._scale = np.zeros(width, np.float32), np.ones(width, np.float32)
        sizes = (width, *given.hidden, OFFSETS[-1])
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        self._net = nn.Sequential(*layers[:-1])
        self._begin_at(first_setting(task, given.start))

    # --- what a training asks of a learner ---------------------------------------------------------------------------

    def update(self) -> dict[str, float]:
        """Measure, and move."""
        found = self._crew.measure(self.arrays(), self.updates)
        self.steps += found.windows
        if not self.updates:
            self._normalise(found)
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

    def arrays(self) -> dict[str, Any]:
        """The policy as it stands; see `policies.trained.load`."""
        found: dict[str, Any] = {"mean": self._mean.copy(), "scale": self._scale.copy()}
        for i, layer in enumerate(one for one in self._net if isinstance(one, nn.Linear)):
            found[f"w{i}"] = np.ascontiguousarray(layer.weight.detach().numpy().T)
            found[f"b{i}"] = layer.bias.detach().numpy().copy()
        return found

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
        self._mean, self._scale = arrays["policy.mean"], arrays["policy.scale"]
        linear = [one for one in self._net if isinstance(one, nn.Linear)]
        with torch.no_grad():
            for i, layer in enumerate(linear):
                weights = arrays[f"policy.w{i}"]
                if weights.shape != tuple(reversed(layer.weight.shape)):
                    raise ValueError(f"layer {i} has another shape")
                layer.weight.copy_(torch.from_numpy(weights.T.copy()))
                layer.bias.copy_(torch.from_numpy(arrays[f"policy.b{i}"]))
        self._recent.clear()
        for i in range(int(notes["recent"])):
            part = {name: arrays[f"recent.{i}.{name}"] for name in _MEASURED}
            self._recent.append(Measured(**part, values=np.zeros(0), windows=0))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _begin_at(self, setting: Floats) -> None:
        """Choose `setting` everywhere, with some doubt."""
        last = self._net[-1]
        with torch.no_grad():
            last.weight.mul_(0.05)
            last.bias.zero_()
            for knob, place in enumerate(nearest(setting[None])[0].tolist()):
                last.bias[OFFSETS[knob] + place] = self.settings.confidence

    def _normalise(self, found: Measured) -> None:
        """Scale observations by what the first policy saw; it chooses the same thing everywhere, so that this changes nothing yet."""
        seen = found.observations.astype(np.float64)
        deviation = np.maximum(seen.std(axis=0), _LEAST_DEVIATION)
        plain = [COLUMNS.index(name) for name in _PLAIN]
        deviation[plain] = 1.0 / _PLAIN_SCALE
        self._mean, self._scale = seen.mean(axis=0).astype(np.float32), (1.0 / deviation).astype(np.float32)

    def _move(self, found: Measured) -> dict[str, float]:
        given = self.settings
        chance = stream(self.config.seed, f"forks/fit/{self.updates}")
        inputs = torch.from_numpy((found.observations - self._mean) * self._scale)
        known = found.weights > 0
        spread = float(found.advantages[known & (found.advantages != 0)].std()) or 1.0
        gains = torch.from_numpy(np.clip(found.advantages / spread, -_CLIP, _CLIP) * found.weights)
        barred = torch.from_numpy(found.masks == 0)
        with torch.no_grad():
            old = _log_odds(self._net(inputs), barred)
        optimiser = torch.optim.Adam(self._net.parameters(), given.learning_rate)
        moved = 0.0
        for _ in range(given.epochs):
            order = chance.permutation(len(inputs))
            for at in range(0, len(order), given.batch_size):
                rows = torch.from_numpy(order[at : at + given.batch_size])
                logs = _log_odds(self._net(inputs[rows]), barred[rows])
                odds = logs.exp()
                change = (odds * (logs - old[rows]).masked_fill(barred[rows], 0.0)).sum(dim=1).mean()
                loss = change / given.step_size - (odds * gains[rows]).sum(dim=1).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                moved = float(change.detach())
        with torch.no_grad():
            now = _log_odds(self._net(inputs), barred)
        return {
            "spread": spread,
            "kl": moved,
            "changed_choices": float((_choices(now) != _choices(old)).double().mean()),
        }


def _log_odds(scores: Any, barred: Any) -> Any:
    """Logarithms of the odds, knob by knob."""
    masked = scores.masked_fill(barred, -1e9)
    return torch.cat([torch.log_softmax(masked[:, a:b], dim=1) for a, b in pairwise(OFFSETS)], dim=1)


def _choices(logs: Any) -> Any:
    return torch.stack([logs[:, a:b].argmax(dim=1) for a, b in pairwise(OFFSETS)], dim=1)
