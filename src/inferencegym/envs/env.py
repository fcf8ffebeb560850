"""The one Gymnasium environment: a task's plant, an agent's surface, one decision a step. Both families are this class with another default task.

`reset` and `step` copy what they hand out. An environment is pickled as its scenario and the actions taken, and wakes up by replaying them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import index as whole
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from inferencegym.decision.columns import Float32s
from inferencegym.decision.knobs import LEVERS, RANGES
from inferencegym.envs import catalogue
from inferencegym.envs.batch import Batch, Outcome, Task
from inferencegym.envs.render import View, picture, text
from inferencegym.envs.splits import SPLIT_SIZE, SPLITS, scenario
from inferencegym.ground.errors import ConfigError, UnknownNameError

RENDER_MODES = ("ansi", "rgb_array")


class Terms(Mapping[str, float]):
    """A reward's terms by name; they add up to it (before it is held to -1..1)."""

    __slots__ = ("_names", "_numbers")

    def __init__(self, names: tuple[str, ...], numbers: npt.NDArray[np.float64]) -> None:
        self._names, self._numbers = names, numbers

    def __getitem__(self, name: str) -> float:
        if name not in self._names:
            raise KeyError(name)
        return float(self._numbers[self._names.index(name)])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Terms({dict(self)})"


def action_space(task: Task) -> spaces.Space[Any]:
    """The native space: an action's number, or the six knobs by name."""
    if task.surface.name != "knobs":
        return spaces.Discrete(task.surface.mask_size)
    deepest = int(RANGES["speculation_depth"][1])
    of_knob: dict[str, spaces.Space[Any]] = {
        "batch_cap": spaces.Discrete(512, start=1),
        "kv_budget_fraction": spaces.Box(0.1, 1.0, (1,), np.float64),
        "speculation_depth": spaces.Discrete(deepest + 1),
        "quantization_tier": spaces.Discrete(3),
        "prefill_decode_split": spaces.Discrete(2),
        "priority_routing": spaces.Discrete(2),
    }
    assert tuple(of_knob) == LEVERS
    return spaces.Dict(of_knob)


def observation_space(task: Task) -> spaces.Space[Float32s]:
    """The surface's columns, encoded."""
    columns = task.surface.columns
    space: spaces.Space[Any] = spaces.Box(columns.low, columns.high, dtype=np.float32)
    return space


def outcome_info(outcome: Outcome) -> dict[str, Any]:
    """An outcome as `info` carries it."""
    return {"value": outcome.value, "parts": dict(outcome.parts), "facts": dict(outcome.facts)}


def find_task(task: str | Path | Task, family: str = "") -> Task:
    """A task by name, by file, or as it is; `family`: the only one to take."""
    found = catalogue.task(task) if isinstance(task, str | Path) else task
    if not hasattr(found, "batch"):
        raise ConfigError("task", f"{task!r} is none", allowed="a name, a TOML file or a Task")
    if family and found.family != family:
        known = catalogue.task_names(family)
        raise ConfigError("task", f"'{found.name}' is a task of {found.family}", allowed=", ".join(known))
    return found


def check_draw(split: Any, scenarios: Any) -> None:
    """An error unless there is such a split, with so many scenarios."""
    if not isinstance(split, str) or split not in SPLITS:
        raise UnknownNameError("split", str(split), tuple(SPLITS))
    if not isinstance(scenarios, int | np.integer) or not 1 <= scenarios <= SPLIT_SIZE:
        raise ConfigError("scenarios", f"{scenarios!r} is no whole number in range", allowed=f"1..{SPLIT_SIZE}")


def wanted(options: Mapping[str, Any] | None, split: str) -> tuple[str, Any]:
    """(split, scenario as it was given) of `reset`'s options."""
    options = options or {}
    if not isinstance(options, Mapping):
        raise ConfigError("options", f"{options!r} is no mapping", allowed="scenario, split")
    unknown = sorted(map(str, set(options) - {"scenario", "split"}))
    if unknown:
        raise ConfigError("options", f"there is no '{unknown[0]}'", allowed="scenario, split")
    split = options.get("split", split)
    check_draw(split, 1)
    return split, options.get("scenario")


def as_array(action: Any, name: str = "action", allowed: str = "numbers") -> npt.NDArray[Any]:
    """What a caller gave as an array; an error if it is a crooked list."""
    try:
        return np.asarray(action)
    except ValueError:
        raise ConfigError(name, f"{action!r} is no array", allowed=allowed) from None


class PlantEnv(gym.Env[Float32s, Any]):
    """An agent steers a simulated plant through its surface; see `LLMServeEnv` and `PagedKVEnv` for the two families."""

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 10}  # noqa: RUF012
    #: Family whose tasks the class accepts; empty: any.
    family: ClassVar[str] = ""

    def __init__(
        self,
        task: str | Path | Task,
        *,
        split: str = "train",
        scenarios: int = SPLIT_SIZE,
        render_mode: str | None = None,
    ) -> None:
        """`task`: a name, a TOML file or a Task; `split`: train, validation or test; `scenarios`: how many of the split's to draw from."""
        check_draw(split, scenarios)
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise UnknownNameError("render mode", render_mode, RENDER_MODES)
        self._given: str | Path | Task = task
        self.task = find_task(task, self.family)
        self.split, self.scenarios, self.render_mode = split, scenarios, render_mode
        self.observation_space = observation_space(self.task)
        self.action_space = action_space(self.task)
        self._names = tuple(self.task.reward_terms)
        self._choices = self.task.surface.mask_size
        self._numbered = self.task.surface.name != "knobs"
        self._batch: Batch | None = None
        self._number = -1
        self._live = False
        self._forget()

    # --- Gymnasium ---------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32s, dict[str, Any]]:
        """Begin an episode. `options`: `scenario` (index within the split) and `split`; else the scenario is drawn, so that `seed` fixes all that follow."""
        split, index = self._wanted(options)
        super().reset(seed=seed)
        if index is None:
            index = int(self.np_random.integers(self.scenarios))
        self._start(split, index)
        return self._observation.copy(), {
            "action_mask": self._mask.copy(), "scenario": index, "split": split, "task": self.task.name, "digest": self.task.digest,
        }  # fmt: skip

    def step(self, action: Any) -> tuple[Float32s, float, bool, bool, dict[str, Any]]:
        """Take one decision. An action that is wrong is refused and changes nothing."""
        if not self._live:
            raise _not_live(self._batch is None)
        if self._numbered:
            try:
                dense = whole(action)
            except TypeError:
                dense = -1
            if not 0 <= dense < self._choices:
                dense = self._dense(action)
        else:
            dense = self._dense(action)
        reward = self._advance(dense)
        terminated, truncated = self._terminated.item(0), self._truncated.item(0)
        info = {"action_mask": self._mask.copy(), "reward_terms": Terms(self._names, self._terms.copy())}
        if terminated or truncated:
            self._live = False
            assert self._batch is not None
            info["outcome"] = outcome_info(self._batch.outcome(0))
            info["facts"] = self._batch.facts(0)
        return self._observation.copy(), reward, terminated, truncated, info

    def render(self) -> Any:
        """The episode so far: a block of text (`ansi`) or strip charts (`rgb_array`, uint8[height, width, 3])."""
        if self.render_mode is None:
            gym.logger.warn("Calling render without a render mode; say e.g. gym.make(..., render_mode='ansi').")
            return None
        if self._batch is None:
            raise _not_live(True)
        return text(self.view()) if self.render_mode == "ansi" else picture(self.view())

    # --- beyond Gymnasium --------------------------------------------------------------------------------------------

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """What may be done now, as sb3-contrib asks for it."""
        if self._batch is None:
            raise _not_live(True)
        legal: npt.NDArray[np.bool_] = self._mask.astype(np.bool_)
        return legal

    def branch(self, copies: int) -> Batch:
        """Independent copies of the running episode, which go on into the same future: for planners and for study, not for policies."""
        if self._batch is None:
            raise _not_live(True)
        if copies < 1:
            raise ConfigError("copies", f"{copies}", allowed="1 or more")
        return self._batch.branch(0, copies)

    @property
    def steps_taken(self) -> int:
        """Decisions since `reset`."""
        return self._taken

    def view(self) -> View:
        """What there is to show."""
        assert self._batch is not None
        last = self._log[self._taken - 1] if self._taken else None
        return View(
            task=self.task, split=self.split_now, scenario=self.scenario, step=self._taken, total_reward=self._total,
            action=last, reward=self._reward.item(0), terms=dict(zip(self._names, self._terms.tolist(), strict=True)),
            observations=np.array(self._seen) if self._seen else self._observation[None].copy(), mask=self._mask.copy(),
            over="crashed" if self._terminated.item(0) else "over" if self._truncated.item(0) else "",
        )  # fmt: skip

    # --- inside ------------------------------------------------------------------------------------------------------

    def _wanted(self, options: Mapping[str, Any] | None) -> tuple[str, int | None]:
        split, index = wanted(options, self.split)
        if index is not None:
            try:
                index = whole(index)
            except TypeError:
                raise ConfigError(
                    "scenario", f"{index!r} is no whole number", allowed="an index within the split"
                ) from None
        scenario(split, index or 0)
        return split, index

    def _dense(self, action: Any) -> Any:
        """What the surface makes of an action; it names what it knows of, and what no array can hold is named here."""
        try:
            return self.task.surface.dense(action)
        except ConfigError:
            raise
        except (TypeError, ValueError):
            raise ConfigError("action", f"{action!r} cannot be read", allowed=str(self.action_space)) from None

    def _start(self, split: str, index: int) -> None:
        number = scenario(split, index)
        if self._batch is None:
            self._bind(self.task.batch(1))
        assert self._batch is not None
        self._batch.start(0, number)
        self._number, self.split_now, self.scenario = number, split, index
        self._forget()
        self._live = True
        if self.render_mode == "rgb_array":
            self._seen.append(self._observation.copy())

    def _forget(self) -> None:
        self._taken, self._total = 0, 0.0
        self._seen: list[Float32s] = []

    def _bind(self, batch: Batch) -> None:
        self._batch = batch
        self._step = batch.step
        self._actions, self._observation, self._mask = batch.actions, batch.observations[0], batch.masks[0]
        self._reward, self._terms = batch.rewards, batch.terms[0]
        self._terminated, self._truncated = batch.terminated, batch.truncated
        self._log = np.zeros((self.task.steps, *batch.actions.shape[1:]), batch.actions.dtype)

    def _advance(self, dense: Any) -> float:
        self._actions[0] = dense
        self._log[self._taken] = dense
        self._step()
        self._taken += 1
        reward = self._reward.item(0)
        self._total += reward
        if self._seen:
            self._seen.append(self._observation.copy())
        return float(reward)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in (
            "_batch",
            "_step",
            "_actions",
            "_observation",
            "_mask",
            "_reward",
            "_terms",
            "_terminated",
            "_truncated",
        ):
            state.pop(name, None)
        log = state.pop("_log", None)
        # A shipped task is found again by its name; one of somebody's own is pickled as it is.
        ours = not isinstance(self._given, str | Path) and self.task.name in catalogue.task_names()
        if ours and catalogue.task(self.task.name).digest == self.task.digest:
            state["_given"] = self.task.name
        if isinstance(state["_given"], str | Path):
            del state["task"]
        state["_digest"] = self.task.digest
        return {"state": state, "actions": None if log is None else log[: self._taken].copy()}

    def __setstate__(self, pickled: dict[str, Any]) -> None:
        state, actions = dict(pickled["state"]), pickled["actions"]
        digest = state.pop("_digest")
        live = state["_live"]
        self.__dict__.update(state)
        self._batch = None
        self.task = find_task(self._given)
        if self.task.digest != digest:
            raise ConfigError("task", f"'{self.task.name}' has changed since this environment was pickled")
        if actions is not None:
            self._start(self.split_now, self.scenario)
            for dense in actions:
                self._advance(dense)
            self._live = live


def _not_live(never: bool) -> ConfigError:
    if never:
        return ConfigError("env", "the environment was never reset", allowed="call reset() first")
    return ConfigError("env", "the episode has ended", allowed="call reset() before the next step()")
