"""The way into Stable-Baselines3 and sb3-contrib: their VecEnv over our vector environment, many episodes in one kernel call.

    from stable_baselines3 import PPO
    model = PPO("MlpPolicy", vec_env("bursty_workload", 16), seed=0).learn(100_000)

Torch stays on as many threads as it likes; on a busy machine set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.envs.batch import Task
from inferencegym.envs.splits import SPLIT_SIZE
from inferencegym.envs.vector import PlantVectorEnv
from inferencegym.ground.errors import ConfigError, MissingExtraError
from inferencegym.learn.rows import Rows

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise MissingExtraError("train", "training with Stable-Baselines3") from error


class PlantVecEnv(VecEnv):  # type: ignore[misc]
    """A `PlantVectorEnv` as Stable-Baselines3 wants it: automatic resets with `terminal_observation`, masks by `env_method("action_masks")`."""

    def __init__(self, vector: PlantVectorEnv, *, resumable: bool = False) -> None:
        """`resumable`: keep the actions of episodes that are going on, so that `rows.keep` can say where every row stands."""
        self.vector = vector
        self._actions: npt.NDArray[Any] | None = None
        super().__init__(vector.num_envs, vector.single_observation_space, vector.single_action_space)
        self.rows = Rows(vector, resumable=resumable)
        self._since = time.monotonic()

    def reset(self) -> npt.NDArray[np.float32]:
        """First observations; seeds set by `seed()` are used once, row by row."""
        given = [seed for seed in self._seeds if seed is not None]
        observations, _ = self.vector.reset(seed=list(self._seeds) if given else None, options=self._options[0] or None)
        self._reset_seeds()
        self._reset_options()
        self.rows.clear()
        return observations

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(
        self,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_], list[dict[str, Any]]]:
        """Take a step in every row."""
        assert self._actions is not None, "step_async comes first"
        observations, rewards, terminated, truncated, found = self.vector.step(self._actions)
        self.rows.add(rewards)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        over = terminated | truncated
        for i in np.flatnonzero(over).tolist():
            total, length = self.rows.end(i)
            value = float(found["final_info"]["outcome"]["value"][i])
            infos[i] = {
                "terminal_observation": found["final_obs"][i], "TimeLimit.truncated": bool(truncated[i] and not terminated[i]), "value": value,
                "episode": {"r": total, "l": length, "t": round(time.monotonic() - self._since, 6), "value": value},
            }  # fmt: skip
        return observations, rewards.astype(np.float32), over, infos

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """bool[n, m]: what each row may do."""
        legal: npt.NDArray[np.bool_] = self.vector.action_masks().astype(np.bool_)
        return legal

    def close(self) -> None:
        """Nothing to give back."""

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """An attribute, once for each row: they share the vector environment's."""
        if attr_name == "action_masks":
            if self.vector.encoding is not None and self.vector.encoding.name == "box":
                raise AttributeError("continuous actions have no mask")
            return [self.action_masks for _ in self._get_indices(indices)]
        found = getattr(self.vector, attr_name)
        return [found for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Rows have no attributes of their own."""
        raise ConfigError(
            attr_name, "rows share one environment and cannot be set one by one", allowed="make a new environment"
        )

    def env_method(
        self, method_name: str, *args: Any, indices: int | Iterable[int] | None = None, **kwargs: Any
    ) -> list[Any]:
        """`action_masks`, row by row; there is no other."""
        if method_name != "action_masks":
            raise ConfigError("env_method", f"there is no '{method_name}'", allowed="action_masks")
        masks = self.action_masks()
        return [masks[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: int | Iterable[int] | None = None) -> list[bool]:
        """Never: it keeps its own account of episodes, so no Monitor is needed."""
        del wrapper_class
        return [False for _ in self._get_indices(indices)]


def vec_env(
    task: str | Path | Task,
    n: int,
    *,
    split: str = "train",
    scenarios: int = SPLIT_SIZE,
    encoding: str = "multidiscrete",
    seed: int | None = None,
    resumable: bool = False,
) -> PlantVecEnv:
    """N episodes of a task for a learner; the arguments are those of `PlantVectorEnv`. Take `preset` or `delta` for DQN on knobs."""
    vector = PlantVectorEnv(n, task, split=split, scenarios=scenarios, encoding=encoding)
    made = PlantVecEnv(vector, resumable=resumable)
    if seed is not None:
        made.seed(seed)
    return made


class LearnedPolicy:
    """A trained model as a policy, for `evaluate`: greedy, and masked where the model takes masks."""

    def __init__(self, model: Any, task: Task, *, encoding: str = "multidiscrete", name: str = "learned") -> None:
        from inferencegym.decision.encodings import find_encoding

        self.model, self.name, self.surface = model, name, task.surface.name
        self.encoding = find_encoding(encoding) if self.surface == "knobs" else None
        self._surface = task.surface
        self._masked = "action_masks" in _arguments(model.predict)

    def start(self, seed: int) -> None:
        """Nothing is left to chance."""
        del seed

    def act(self, observation: npt.NDArray[np.float32], mask: npt.NDArray[np.int8]) -> Any:
        """The model's choice."""
        seen = observation[None]
        masks = mask[None] if self.encoding is None else self.encoding.mask(mask[None], seen)
        more = {"action_masks": masks} if self._masked and masks is not None else {}
        actions, _ = self.model.predict(seen, deterministic=True, **more)
        if self.encoding is None:
            return int(actions[0])
        return self._surface.action(self.encoding.levers(actions, seen)[0])


def _arguments(function: Callable[..., Any]) -> Sequence[str]:
    return function.__code__.co_varnames[: function.__code__.co_argcount]
