"""Encodings of the knobs as Gymnasium knows them: the space of each, and a wrapper that makes an environment take one.

What the encodings mean is written in `decision.encodings`, where policies find it without Gymnasium.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from inferencegym.decision.columns import Float32s
from inferencegym.decision.encodings import Encoding, find_encoding
from inferencegym.decision.knobs import Knobs
from inferencegym.envs.env import PlantEnv, as_array
from inferencegym.ground.errors import ConfigError


def space_of(encoding: Encoding) -> spaces.Space[Any]:
    """MultiDiscrete, Discrete or Box."""
    if len(encoding.sizes) > 1:
        return spaces.MultiDiscrete(np.array(encoding.sizes))
    return spaces.Discrete(encoding.sizes[0]) if encoding.sizes else spaces.Box(-1.0, 1.0, (6,), np.float32)


class EncodedAction(gym.Wrapper[Float32s, Any, Float32s, Any], gym.utils.RecordConstructorArgs):
    """An LLMServe environment whose actions are written in another encoding; `info["action_mask"]` and `action_masks()` follow."""

    def __init__(self, env: gym.Env[Float32s, Any], encoding: str = "multidiscrete") -> None:
        """`encoding`: multidiscrete, preset, delta or box."""
        gym.utils.RecordConstructorArgs.__init__(self, encoding=encoding)
        gym.Wrapper.__init__(self, env)
        plant = env.unwrapped
        if not isinstance(plant, PlantEnv) or plant.task.surface.name != "knobs":
            raise ConfigError("encoding", "only environments with knobs have them", allowed="inferencegym/LLMServe-v0")
        self.encoding = find_encoding(encoding)
        self.action_space = space_of(self.encoding)
        self._seen: Float32s = np.zeros((1, len(plant.task.surface.columns)), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32s, dict[str, Any]]:
        """As the environment's."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._look(observation, info)

    def step(self, action: Any) -> tuple[Float32s, Any, bool, bool, dict[str, Any]]:
        """As the environment's, with an encoded action."""
        levers = self.encoding.levers(as_array(action)[None], self._seen)[0]
        # NaN leaves a knob as it is, which six numbers cannot say.
        command = Knobs.of(levers) if np.isnan(levers).any() else levers
        observation, reward, terminated, truncated, info = self.env.step(command)
        observation, info = self._look(observation, info)
        return observation, reward, terminated, truncated, info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """The mask as sb3-contrib wants it."""
        masks = self.env.get_wrapper_attr("action_masks")()
        mask = self.encoding.mask(masks[None].astype(np.int8), self._seen)
        if mask is None:
            raise ConfigError(
                "encoding", f"'{self.encoding.name}' cannot be masked", allowed="multidiscrete, preset, delta"
            )
        legal: npt.NDArray[np.bool_] = mask[0].astype(np.bool_)
        return legal

    def _look(self, observation: Float32s, info: dict[str, Any]) -> tuple[Float32s, dict[str, Any]]:
        self._seen = observation[None].copy()
        mask = self.encoding.mask(info.pop("action_mask")[None], self._seen)
        if mask is not None:
            info["action_mask"] = mask[0].copy()
        return observation, info
