"""Stable-Baselines3's algorithms as learners that advance update by update and can be kept and restored between any two, to the bit.

What is kept: weights, the optimiser, observation statistics, the replay buffer, every generator of chance, and where each episode stands.
Exactness needs one thread of torch (`train` sees to it) and the same package, processor and libraries.
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.ground.errors import ConfigError, MissingExtraError
from inferencegym.learn.checkpoint import State
from inferencegym.learn.config import TrainConfig
from inferencegym.learn.sb3 import PlantVecEnv, vec_env
from inferencegym.learn.settings import DQN, PPO, RANDOM
from inferencegym.learn.varied import vary

try:
    import stable_baselines3 as sb3
    import torch
    from sb3_contrib import QRDQN, MaskablePPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.logger import Logger
    from torch import nn

    from inferencegym.learn.export import Arrays, Normalised, network
    from inferencegym.learn.mlp import put_layers, taken_over
except ImportError as error:
    raise MissingExtraError("train", "training a network") from error

#: Decisions between two reports of a learner that has no rollouts.
_REPORT_EVERY = 2048


class _Quiet(BaseCallback):  # type: ignore[misc]
    """Counts episodes."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes = 0

    def _on_step(self) -> bool:
        self.episodes += int(np.count_nonzero(self.locals["dones"]))
        return True


class _Learner:
    """What both families share."""

    model: Any
    env: PlantVecEnv
    kind = "network"
    activation = ""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.counter = _Quiet()

    @property
    def steps(self) -> int:
        """Decisions so far."""
        return int(self.model.num_timesteps)

    def arrays(self) -> Arrays:
        """The policy as it stands."""
        self.activation, found = network(self.model)
        return found

    def _begin(self) -> None:
        self.model.set_logger(Logger(folder=None, output_formats=[]))
        self.model._setup_learn(self.config.steps, self.counter)

    def _figures(self, *names: str) -> dict[str, float]:
        """Means over the last hundred episodes, and what the algorithm says of its last gradient steps."""
        told = self.model.logger.name_to_value
        recent = list(self.model.ep_info_buffer)
        found = {
            "episodes": float(self.counter.episodes),
            "episode_return": _mean([one["r"] for one in recent]),
            "episode_value": _mean([one["value"] for one in recent]),
            "episode_steps": _mean([one["l"] for one in recent]),
        }
        found |= {name: float(told.get(f"train/{name}", float("nan"))) for name in names}
        self.model.logger.name_to_value.clear()
        return found

    # --- keep and restore --------------------------------------------------------------------------------------------

    def keep(self) -> State:
        """Everything that the next update depends on."""
        model = self.model
        where, rows = self.env.rows.keep()
        notes = {
            "env": where, "num_timesteps": model.num_timesteps, "n_updates": model._n_updates, "episodes": self.counter.episodes,
            "recent": [one | {"t": 0.0} for one in model.ep_info_buffer], "progress": model._current_progress_remaining, "chance": _chance(model),
        }  # fmt: skip
        arrays = {f"env.{name}": array for name, array in rows.items()}
        arrays |= {"last_obs": model._last_obs, "starts": model._last_episode_starts}
        arrays |= {f"policy.{name}": tensor.cpu().numpy().copy() for name, tensor in model.policy.state_dict().items()}
        arrays |= _kept_optimiser(model.policy.optimizer)
        generator, numbers = _global_chance()
        arrays |= numbers
        return notes | {"global": generator}, arrays

    def restore(self, state: State) -> None:
        """Go on from there. ValueError if it is not a state of such a training."""
        notes, arrays = state
        model = self.model
        seen = self.env.rows.restore(notes["env"], _part(arrays, "env."))
        if not np.array_equal(seen, arrays["last_obs"]):
            raise ValueError("its episodes do not come out as they were: the simulator, or the machine, is another")
        model._last_obs, model._last_episode_starts = arrays["last_obs"], arrays["starts"]
        weights = {name: torch.from_numpy(array) for name, array in _part(arrays, "policy.").items()}
        model.policy.load_state_dict(weights)
        _restore_optimiser(model.policy.optimizer, arrays)
        model.num_timesteps, model._n_updates = notes["num_timesteps"], notes["n_updates"]
        model._current_progress_remaining = notes["progress"]
        model.ep_info_buffer = deque(notes["recent"], maxlen=model.ep_info_buffer.maxlen)
        self.counter.episodes = notes["episodes"]
        _restore_chance(model, notes["chance"], notes["global"], arrays)


class PPOLearner(_Learner):
    """PPO and MaskablePPO; without masks the two are the same algorithm, so one class serves both."""

    figures: tuple[str, ...] = (
        "policy_gradient_loss",
        "value_loss",
        "entropy_loss",
        "approx_kl",
        "clip_fraction",
        "explained_variance",
    )

    def __init__(self, config: TrainConfig, task: Any) -> None:
        super().__init__(config)
        given = config.settings
        assert isinstance(given, PPO)
        self.env = _env(config, task)
        self.masked = config.algorithm == "maskable-ppo"
        learned = taken_over(given.start, task.surface.name, config.encoding, given.hidden)
        if learned is None and given.start != RANDOM:
            raise ConfigError("start", f"'{given.start}'", allowed=f"{RANDOM}, or file:PATH")
        self.normalise = given.normalise and learned is None
        """Whether the scaling of observations still follows what is seen; one that was taken over stays."""
        size = given.rollout_steps * config.rows
        extractor = {"features_extractor_class": Normalised} if given.normalise or learned is not None else {}
        self.model = MaskablePPO(
            "MlpPolicy", self.env, n_steps=given.rollout_steps, batch_size=min(given.batch_size, size), n_epochs=given.epochs,
            learning_rate=_falling(given.learning_rate) if given.anneal else given.learning_rate, gamma=given.discount, gae_lambda=given.gae_lambda,
            clip_range=given.clip, ent_coef=given.entropy, vf_coef=given.value_weight, max_grad_norm=given.max_grad_norm, seed=config.seed, device="cpu",
            policy_kwargs={"net_arch": list(given.hidden), "activation_fn": nn.Tanh, **extractor},
        )  # fmt: skip
        if learned is not None:
            self._take_over(learned)
        self._begin()

    def _take_over(self, learned: Arrays) -> None:
        policy = self.model.policy
        stages = [*policy.mlp_extractor.policy_net, policy.action_net]
        put_layers([stage for stage in stages if isinstance(stage, nn.Linear)], learned)
        policy.features_extractor.mean.copy_(torch.from_numpy(learned["mean"].copy()))
        policy.features_extractor.scale.copy_(torch.from_numpy(learned["scale"].copy()))

    def update(self) -> dict[str, float]:
        """A rollout, and what is learned from it."""
        with _unchecked():
            self._update()
        return self._figures(*self.figures)

    def _update(self) -> None:
        model = self.model
        model.collect_rollouts(self.env, self.counter, model.rollout_buffer, model.n_steps, use_masking=self.masked)
        model._update_current_progress_remaining(model.num_timesteps, self.config.steps)
        model.train()
        if self.normalise:
            model.policy.features_extractor.see(model.rollout_buffer.observations)


class DQNLearner(_Learner):
    """DQN and QR-DQN. They explore and learn without masks (what is illegal does nothing); the policy that comes out obeys them."""

    figures: tuple[str, ...] = ("loss", "exploration_rate")

    def __init__(self, config: TrainConfig, task: Any) -> None:
        super().__init__(config)
        given = config.settings
        assert isinstance(given, DQN)
        self.env = _env(config, task)
        quantiles = config.algorithm == "qr-dqn"
        own = {"n_quantiles": given.quantiles} if quantiles else {}
        self.model = (QRDQN if quantiles else sb3.DQN)(
            "MlpPolicy", self.env, learning_rate=given.learning_rate, buffer_size=max(given.buffer, config.rows), learning_starts=given.warmup,
            batch_size=given.batch_size, gamma=given.discount, train_freq=given.train_every, gradient_steps=given.gradient_steps,
            target_update_interval=given.target_every, exploration_fraction=given.exploration_share, exploration_final_eps=given.exploration_end,
            max_grad_norm=given.max_grad_norm, seed=config.seed, device="cpu",
            policy_kwargs={"net_arch": list(given.hidden), "activation_fn": nn.ReLU, **own},
        )  # fmt: skip
        self._begin()

    def update(self) -> dict[str, float]:
        """Some two thousand decisions, and what is learned on the way."""
        model, until = self.model, self.steps + _REPORT_EVERY
        while self.steps < until:
            model.collect_rollouts(
                self.env, train_freq=model.train_freq, action_noise=None, callback=self.counter, learning_starts=model.learning_starts,
                replay_buffer=model.replay_buffer, log_interval=None,
            )  # fmt: skip
            if self.steps > model.learning_starts:
                model.train(batch_size=model.batch_size, gradient_steps=model.gradient_steps)
        model.logger.record("train/exploration_rate", model.exploration_rate)
        return self._figures(*self.figures)

    def keep(self) -> State:
        """The replay buffer, too."""
        notes, arrays = super().keep()
        buffer = self.model.replay_buffer
        notes |= {
            "calls": self.model._n_calls,
            "exploration_rate": self.model.exploration_rate,
            "episode_num": self.model._episode_num,
        }
        notes |= {"buffer": {"pos": buffer.pos, "full": bool(buffer.full)}}
        used = buffer.buffer_size if buffer.full else buffer.pos
        arrays |= {f"buffer.{name}": getattr(buffer, name)[:used] for name in _BUFFER}
        return notes, arrays

    def restore(self, state: State) -> None:
        """The replay buffer, too."""
        super().restore(state)
        notes, arrays = state
        buffer = self.model.replay_buffer
        for name, array in _part(arrays, "buffer.").items():
            getattr(buffer, name)[: len(array)] = array
        buffer.pos, buffer.full = notes["buffer"]["pos"], notes["buffer"]["full"]
        self.model._n_calls, self.model.exploration_rate = notes["calls"], notes["exploration_rate"]
        self.model._episode_num = notes["episode_num"]


_BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


@contextmanager
def _unchecked() -> Iterator[None]:
    """Torch looks at every probability it is given, several times a step; ours come from its own softmax."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


def _env(config: TrainConfig, task: Any) -> PlantVecEnv:
    encoding = "multidiscrete" if config.encoding == "actions" else config.encoding
    return vec_env(
        vary(task, config.randomise), config.rows, scenarios=config.scenarios, encoding=encoding, resumable=True
    )


def _falling(rate: float) -> Any:
    return lambda left: rate * max(left, 0.0)


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _part(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _kept_optimiser(optimiser: Any) -> Arrays:
    state = optimiser.state_dict()["state"]
    return {
        f"optimiser.{index}.{name}": torch.as_tensor(value).cpu().numpy().copy()
        for index, slots in state.items()
        for name, value in slots.items()
    }


def _restore_optimiser(optimiser: Any, arrays: Arrays) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, array in _part(arrays, "optimiser.").items():
        found = re.fullmatch(r"(\d+)\.(\w+)", name)
        if found is None:
            raise ValueError(f"optimiser.{name} is not known")
        state.setdefault(int(found[1]), {})[found[2]] = torch.from_numpy(array.copy())
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _chance(model: Any) -> dict[str, Any]:
    """The generator that draws random actions, where the algorithm has one of its own."""
    return {"actions": model.action_space.np_random.bit_generator.state} if hasattr(model, "replay_buffer") else {}


def _global_chance() -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """The process's generators, which Stable-Baselines3 draws from: NumPy's old one, Python's, torch's."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, words, following = random.getstate()
    notes = {"numpy": [kind, position, has_gauss, gauss], "python": [version, following]}
    return notes, {
        "chance.numpy": np.asarray(keys), "chance.python": np.array(words, np.uint64), "chance.torch": torch.get_rng_state().numpy().copy(),
    }  # fmt: skip


def _restore_chance(model: Any, own: dict[str, Any], notes: dict[str, Any], arrays: Arrays) -> None:
    if "actions" in own:
        model.action_space.np_random.bit_generator.state = own["actions"]
    kind, position, has_gauss, gauss = notes["numpy"]
    np.random.set_state((kind, arrays["chance.numpy"], position, has_gauss, gauss))  # noqa: NPY002
    version, following = notes["python"]
    random.setstate((version, tuple(arrays["chance.python"].tolist()), following))
    torch.set_rng_state(torch.from_numpy(arrays["chance.torch"].copy()))
