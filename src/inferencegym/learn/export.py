"""From a Stable-Baselines3 model to a policy file that needs neither it nor torch: weights and normalisation, to the last digit that matters.

    from inferencegym.learn.export import export
    export(model, "mine/policy.npz", task="bursty_workload")
    # inferencegym evaluate --policy mine/policy.npz --task bursty_workload

Takes PPO, MaskablePPO, DQN and QR-DQN models with an MlpPolicy (tanh or ReLU).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import inferencegym
from inferencegym.envs.batch import Task
from inferencegym.envs.env import find_task
from inferencegym.ground.errors import ConfigError, MissingExtraError
from inferencegym.policies.trained import Notes, save

try:
    import torch
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
    from torch import nn
except ImportError as error:
    raise MissingExtraError("train", "exporting a model of Stable-Baselines3") from error

Arrays = dict[str, npt.NDArray[Any]]
_LEAST_DEVIATION = 0.05


class Normalised(BaseFeaturesExtractor):  # type: ignore[misc]
    """Observations less their mean, over their deviation, of all that was seen so far; `see` is called between updates, so that it never changes inside one."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, features_dim=int(np.prod(observation_space.shape)))
        width = self.features_dim
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        for name in ("seen", "total", "squares"):
            self.register_buffer(name, torch.zeros(1 if name == "seen" else width, dtype=torch.float64))

    def forward(self, observations: Any) -> Any:
        """float32[n, k]."""
        return (observations - self.mean) * self.scale

    def see(self, observations: npt.NDArray[np.float32]) -> None:
        """Take observations, float32[..., k], into the account. A column that hardly changes is scaled by twenty at most."""
        rows = torch.as_tensor(observations.reshape(-1, self.features_dim)).double()
        self.seen += len(rows)
        self.total += rows.sum(dim=0)
        self.squares += (rows * rows).sum(dim=0)
        mean = self.total / self.seen
        deviation = (self.squares / self.seen - mean * mean).clamp(min=0.0).sqrt().clamp(min=_LEAST_DEVIATION)
        self.mean.copy_(mean.float())
        self.scale.copy_((1.0 / deviation).float())


def network(model: Any) -> tuple[str, Arrays]:
    """(activation, arrays as `policies.trained.load` wants them) of a model's deterministic choice."""
    policy = model.policy
    if hasattr(policy, "action_net"):
        if policy.features_extractor_class not in (Normalised, FlattenExtractor):
            raise _cannot(f"its features come from {policy.features_extractor_class.__name__}")
        features, stages = policy.pi_features_extractor, [*policy.mlp_extractor.policy_net, policy.action_net]
    elif hasattr(policy, "quantile_net"):
        inner = policy.quantile_net
        features, stages = inner.features_extractor, list(inner.quantile_net)
    elif hasattr(policy, "q_net"):
        features, stages = policy.q_net.features_extractor, list(policy.q_net.q_net)
    else:
        raise _cannot(f"it is a {type(policy).__name__}")
    layers = [stage for stage in stages if isinstance(stage, nn.Linear)]
    kinds = {type(stage) for stage in stages if not isinstance(stage, nn.Linear)}
    names = {nn.Tanh: "tanh", nn.ReLU: "relu"}
    if len(kinds) > 1 or not kinds <= set(names) or not all(isinstance(a, nn.Linear) != isinstance(b, nn.Linear) for a, b in pairwise(stages)):  # fmt: skip
        raise _cannot("its layers are " + ", ".join(type(stage).__name__ for stage in stages))
    arrays: Arrays = {}
    for i, layer in enumerate(layers):
        weights, biases = _numpy(layer.weight).T, _numpy(layer.bias)
        if hasattr(policy, "quantile_net") and i == len(layers) - 1:
            # The value of an action is the mean of its quantiles, and a mean of linear outputs is linear.
            many = policy.quantile_net.n_quantiles
            weights = weights.astype(np.float64).reshape(len(weights), many, -1).mean(axis=1)
            biases = biases.astype(np.float64).reshape(many, -1).mean(axis=0)
        arrays |= {f"w{i}": weights.astype(np.float32), f"b{i}": biases.astype(np.float32)}
    inputs = len(arrays["w0"])
    normal = isinstance(features, Normalised)
    arrays["mean"] = _numpy(features.mean) if normal else np.zeros(inputs, np.float32)
    arrays["scale"] = _numpy(features.scale) if normal else np.ones(inputs, np.float32)
    return names[kinds.pop()] if kinds else "tanh", arrays


def export(
    model: Any, path: Path | str, *, task: str | Path | Task, encoding: str = "", algorithm: str = "", seed: int = 0
) -> Path:
    """Write a model's policy. `encoding`: how it writes actions on knobs (unset: multidiscrete); paging has one way."""
    found = find_task(task)
    head = "actions" if found.surface.name == "paging" else encoding or "multidiscrete"
    activation, arrays = network(model)
    notes = Notes(
        kind="network", surface=found.surface.name, head=head, task=found.name, task_digest=found.digest,
        algorithm=algorithm or type(model).__name__, seed=seed, config_digest="", steps=int(model.num_timesteps), activation=activation,
        version=inferencegym.__version__,
    )  # fmt: skip
    return save(path, notes, arrays)


def _numpy(tensor: Any) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = tensor.detach().cpu().numpy().copy()
    return found


def _cannot(why: str) -> ConfigError:
    return ConfigError(
        "model",
        f"cannot be exported: {why}",
        allowed="PPO, MaskablePPO, DQN or QRDQN with an MlpPolicy (Linear, Tanh or ReLU)",
    )
