"""RLlib's PPO on the Gymnasium environments of both families, with masks: for clusters, where environments play in many processes at once.

    from inferencegym.learn.config import defaults
    train(defaults("medium", "maskable-ppo"), "out/mine", runners=2)

Its settings are those of `maskable-ppo` (`learn.config`), and what comes out is the same policy file. Unlike `learn.train`, RLlib cannot
say where its environments stand, so a training is not resumed to the bit. Needs the extra 'ray' (docs/distributed.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from shutil import rmtree
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

import inferencegym
from inferencegym.decision.columns import Float32s
from inferencegym.envs import catalogue
from inferencegym.envs.batch import Task
from inferencegym.envs.encodings import EncodedAction
from inferencegym.envs.env import PlantEnv
from inferencegym.envs.vector import PlantVectorEnv
from inferencegym.ground.archive import Array
from inferencegym.ground.errors import ConfigError, MissingExtraError
from inferencegym.learn.config import TrainConfig
from inferencegym.learn.distributed import LOCAL, connected, own_errors
from inferencegym.learn.settings import PPO, RANDOM
from inferencegym.learn.train import CONFIG, POLICY
from inferencegym.learn.validate import best_static, late_news, values_of, worth
from inferencegym.learn.varied import vary
from inferencegym.policies.trained import Notes, policy_of, save

try:
    import torch
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.columns import Columns
    from ray.rllib.core.distribution.torch.torch_distribution import TorchMultiCategorical
    from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.rllib.core.rl_module.torch import TorchRLModule
    from torch import nn
except ImportError as error:
    raise MissingExtraError("ray", "training with RLlib") from error

ALGORITHM = "rllib-ppo"
_LEAST_DEVIATION = 0.05
_MEASURED_ROWS, _MEASURED_STEPS = 32, 64
#: The logit of what is not allowed: far below any other, and finite, since RLlib multiplies logits by chances of 0.
_NEVER = -1e9


class MaskedEnv(gym.Env[Float32s, Any]):
    """A task's environment whose observation is followed by its mask, float32[k + m]: RLlib hands its networks observations only."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """`config`: task (name or file), randomise, encoding (of knobs), scenarios (training scenarios to draw from), masked."""
        task = vary(catalogue.task(config["task"]), config["randomise"])
        plant: gym.Env[Float32s, Any] = PlantEnv(task, scenarios=config["scenarios"])
        self._env = EncodedAction(plant, config["encoding"]) if task.surface.name == "knobs" else plant  # fmt: skip
        self._masked: bool = config["masked"]
        seen = plant.observation_space
        assert isinstance(seen, spaces.Box)
        self.action_space = self._env.action_space
        ones = np.ones(_choices(self.action_space), np.float32)
        self.observation_space: spaces.Space[Any] = spaces.Box(np.append(seen.low, 0 * ones), np.append(seen.high, ones), dtype=np.float32)  # fmt: skip

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Float32s, dict[str, Any]]:  # fmt: skip
        """As the environment's; RLlib has no use for what stands in `info`."""
        observation, info = self._env.reset(seed=seed, options=options)
        return self._with_mask(observation, info), {}

    def step(self, action: Any) -> tuple[Float32s, Any, bool, bool, dict[str, Any]]:
        """As the environment's."""
        observation, reward, terminated, truncated, info = self._env.step(action)
        return self._with_mask(observation, info), reward, terminated, truncated, {}

    def _with_mask(self, observation: Float32s, info: dict[str, Any]) -> Float32s:
        mask = info["action_mask"].astype(np.float32)
        return np.append(observation, mask if self._masked else np.ones_like(mask))


class MaskedNetworks(TorchRLModule, ValueFunctionAPI):  # type: ignore[misc]
    """Two multilayer perceptrons (tanh), one for the policy's logits and one for the value, on normalised observations."""

    def setup(self) -> None:
        """Make the networks; `model_config` holds hidden (widths), mean and scale (one for each column)."""
        given = self.model_config
        self._width = len(given["mean"])
        choices = self.observation_space.shape[0] - self._width
        if isinstance(self.action_space, spaces.MultiDiscrete):
            sizes = self.action_space.nvec.tolist()
            self.action_dist_cls = TorchMultiCategorical.get_partial_dist_cls(space=self.action_space, input_lens=sizes)
        self.register_buffer("mean", torch.tensor(given["mean"], dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(given["scale"], dtype=torch.float32))
        self.policy = _perceptron([self._width, *given["hidden"], choices], last_gain=0.01)
        self.value = _perceptron([self._width, *given["hidden"], 1], last_gain=1.0)

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        seen, mask = self._parted(batch)
        return {Columns.ACTION_DIST_INPUTS: torch.where(mask > 0.5, self.policy(seen), _NEVER)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Any:
        """float32[n]."""
        del embeddings
        return self.value(self._parted(batch)[0]).squeeze(-1)

    def _parted(self, batch: dict[str, Any]) -> tuple[Any, Any]:
        rows = batch[Columns.OBS]
        return (rows[..., : self._width] - self.mean) * self.scale, rows[..., self._width :]


@dataclass(frozen=True, slots=True)
class Look:
    """How a training stands when its policy is played on validation scenarios."""

    steps: int
    validation: float
    best: float
    best_static: float | None


def algorithm(config: TrainConfig, *, runners: int) -> Any:
    """RLlib's settings of a training. `runners`: processes that environments play in, beside this one; 0: in this one."""
    given = config.settings
    if not isinstance(given, PPO):
        raise ConfigError("algorithm", f"'{config.algorithm}'", allowed="maskable-ppo, ppo: RLlib trains with their settings")  # fmt: skip
    if given.start != RANDOM:
        raise ConfigError("start", f"'{given.start}'", allowed=f"{RANDOM}: RLlib begins with random weights")
    if runners < 0 or config.rows % max(runners, 1):
        raise ConfigError("runners", f"{runners}", allowed=f"0, or a number that divides the {config.rows} rows")
    task = catalogue.task(config.task)
    mean, scale = measured(vary(task, config.randomise), config) if given.normalise else _as_it_is(task)
    size = given.rollout_steps * config.rows
    rate = [[0, given.learning_rate], [config.steps, 0.0]] if given.anneal else given.learning_rate
    return (
        PPOConfig()
        .environment(MaskedEnv, env_config={"task": config.task, "randomise": config.randomise, "encoding": config.encoding, "scenarios": config.scenarios, "masked": config.algorithm == "maskable-ppo"})
        .env_runners(num_env_runners=runners, num_envs_per_env_runner=config.rows // max(runners, 1), rollout_fragment_length=given.rollout_steps)
        .fault_tolerance(restart_failed_env_runners=False)  # Or an error in an environment is tried again for ever.
        .learners(num_learners=0)
        .training(
            lr=rate, gamma=given.discount, lambda_=given.gae_lambda, clip_param=given.clip, entropy_coeff=given.entropy, vf_loss_coeff=given.value_weight,
            vf_clip_param=math.inf, use_kl_loss=False, grad_clip=given.max_grad_norm, grad_clip_by="global_norm", train_batch_size_per_learner=size,
            minibatch_size=min(given.batch_size, size), num_epochs=given.epochs,
        )
        .rl_module(rl_module_spec=RLModuleSpec(
            module_class=MaskedNetworks, model_config={"hidden": list(given.hidden), "mean": mean.tolist(), "scale": scale.tolist()},
        ))
        .debugging(seed=config.seed, log_level="ERROR")
    )  # fmt: skip


def train(
    config: TrainConfig, out: Path | str, *, runners: int = 2, ray: str = LOCAL, tell: Callable[[Look], None] | None = None
) -> tuple[Path, Look]:  # fmt: skip
    """Train, keep the best policy on validation scenarios in `out`/policy.npz, and say how good it is. `ray`: as in `learn.distributed`."""
    settings = algorithm(config, runners=runners)
    folder, task = Path(out), catalogue.task(config.task)
    if (folder / POLICY).exists():
        raise ConfigError("out", f"'{folder}' holds a training", allowed="another folder")
    indices = range(config.validation_scenarios)
    late = late_news(task, config.randomise)
    bar, best, best_worth, steps, last = best_static(task, indices), math.nan, -math.inf, 0, None
    config.save(folder / CONFIG)
    with ExitStack() as stack:
        stack.enter_context(own_errors(stack.enter_context(connected(ray, runners + 1))))
        trainer = settings.build_algo()
        stack.callback(rmtree, trainer.logdir)
        stack.callback(trainer.stop)
        while steps < config.steps:
            before = steps
            steps = int(trainer.train()["num_env_steps_sampled_lifetime"])
            if before // config.validate_every == steps // config.validate_every and steps < config.steps:
                continue
            notes, arrays = exported(trainer.get_module(), task, config, steps)
            policy = policy_of(notes, arrays)
            value = float(np.mean(values_of(policy, task, indices)))
            old = None if late is None else float(np.mean(values_of(policy, late, indices)))
            if worth(value, old) > best_worth:
                best, best_worth = value, worth(value, old)
                save(folder / POLICY, replace(notes, validation=value), arrays)
            last = Look(steps, value, best, bar)
            if tell is not None:
                tell(last)
    assert last is not None, "the last update is looked at"
    return folder / POLICY, last


def exported(module: Any, task: Task, config: TrainConfig, steps: int) -> tuple[Notes, dict[str, Array]]:
    """(notes, arrays) of the policy as it stands, as `policies.trained.save` wants them."""
    notes = Notes(
        kind="network", surface=task.surface.name, head=config.encoding, task=task.name, task_digest=task.digest, algorithm=ALGORITHM, seed=config.seed,
        config_digest=config.digest, steps=steps, activation="tanh", version=inferencegym.__version__,
    )  # fmt: skip
    arrays: dict[str, Array] = {"mean": _numpy(module.mean), "scale": _numpy(module.scale)}
    for i, layer in enumerate(one for one in module.policy if isinstance(one, nn.Linear)):
        arrays |= {f"w{i}": np.ascontiguousarray(_numpy(layer.weight).T), f"b{i}": _numpy(layer.bias)}
    return notes, arrays


def measured(task: Task, config: TrainConfig) -> tuple[Float32s, Float32s]:
    """(mean, 1 / deviation) of each column while random legal actions are taken, float32[k]; a column that hardly changes is scaled by twenty at most."""
    vector = PlantVectorEnv(_MEASURED_ROWS, task, scenarios=config.scenarios, encoding=config.encoding if task.surface.name == "knobs" else "multidiscrete")  # fmt: skip
    space = vector.single_action_space
    space.seed(config.seed)
    seen = [vector.reset(seed=config.seed)[0]]
    for _ in range(_MEASURED_STEPS):
        actions = np.stack([space.sample(mask=_as_sampled(space, mask)) for mask in vector.action_masks()])
        seen.append(vector.step(actions)[0])
    rows = np.concatenate(seen).astype(np.float64)
    return rows.mean(axis=0).astype(np.float32), (1.0 / np.maximum(rows.std(axis=0), _LEAST_DEVIATION)).astype(np.float32)  # fmt: skip


def _as_it_is(task: Task) -> tuple[Float32s, Float32s]:
    width = len(task.surface.columns)
    return np.zeros(width, np.float32), np.ones(width, np.float32)


def _as_sampled(space: Any, mask: npt.NDArray[np.int8]) -> Any:
    """A mask as Gymnasium's `sample` takes it: in one piece, or one for each part."""
    if isinstance(space, spaces.Discrete):
        return mask.astype(np.int8)
    return tuple(np.split(mask.astype(np.int8), np.cumsum(space.nvec)[:-1]))


def _choices(space: Any) -> int:
    return int(space.n) if isinstance(space, spaces.Discrete) else int(space.nvec.sum())


def _perceptron(sizes: list[int], *, last_gain: float) -> Any:
    """Linear layers with tanh between them; orthogonal weights, as PPO's implementations have them (Andrychowicz et al. 2021)."""
    layers: list[Any] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        layer = nn.Linear(inputs, outputs)
        nn.init.orthogonal_(layer.weight, gain=last_gain if i == len(sizes) - 2 else math.sqrt(2.0))
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _numpy(tensor: Any) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = tensor.detach().cpu().numpy().copy()
    return found
