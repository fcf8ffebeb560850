"""Many episodes of one task in one kernel call: a native Gymnasium VectorEnv.

Autoreset is SAME_STEP: the step that ends a row's episode already returns the next one's first observation, and the last one stands in
`info["final_obs"]`. Row i with seed s is, number for number, a single environment reset with seed s + i.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index as whole
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from inferencegym.decision.columns import Float32s, Masks
from inferencegym.decision.encodings import Encoding, find_encoding
from inferencegym.decision.knobs import check_levers
from inferencegym.decision.paging import NOTHING
from inferencegym.envs.batch import Batch, Task
from inferencegym.envs.encodings import space_of
from inferencegym.envs.env import as_array, check_draw, find_task, observation_space, outcome_info, wanted
from inferencegym.envs.splits import SPLIT_SIZE, scenario
from inferencegym.ground.errors import ConfigError

Bools = npt.NDArray[np.bool_]


class PlantVectorEnv(VectorEnv[Float32s, npt.NDArray[Any], npt.NDArray[Any]]):
    """n episodes side by side; see `LLMServeEnv` and `PagedKVEnv` for what they are about."""

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    #: Family whose tasks the class accepts; empty: any.
    family: ClassVar[str] = ""

    def __init__(
        self,
        num_envs: int,
        task: str | Path | Task,
        *,
        split: str = "train",
        scenarios: int = SPLIT_SIZE,
        encoding: str = "multidiscrete",
        render_mode: str | None = None,
    ) -> None:
        """`encoding`: how knobs are written (PagedKV has one way only); the other arguments as a single environment's. Nothing is rendered here."""
        if not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ConfigError("num_envs", f"{num_envs!r}", allowed="a whole number, 1 or more")
        check_draw(split, scenarios)
        if render_mode is not None:
            raise ConfigError(
                "render_mode", "a vector environment is not rendered", allowed="None; render a single one"
            )
        self.task = find_task(task, self.family)
        self.num_envs, self.split, self.scenarios, self.render_mode = num_envs, split, scenarios, None
        self.encoding: Encoding | None = find_encoding(encoding) if self.task.surface.name == "knobs" else None
        self.single_observation_space = observation_space(self.task)
        self.single_action_space: spaces.Space[Any] = (
            space_of(self.encoding) if self.encoding else spaces.Discrete(self.task.surface.mask_size)
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._names = tuple(self.task.reward_terms)
        self._choices = np.uint64(self.task.surface.mask_size)
        self._batch: Batch | None = None
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._index = np.zeros(num_envs, np.int64)
        self._all: Bools = np.ones(num_envs, np.bool_)

    # --- Gymnasium ---------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32s, dict[str, Any]]:
        """Begin an episode in every row. `seed`: row i gets seed + i; or one for each row. `options`: `split`, and `scenario` (an index, or one for each row)."""
        split, indices = self._wanted(options)
        # All rows' chance first: a wrong seed must not leave half of them changed.
        self._rngs = [
            seeding.np_random(one)[0] if one is not None or rng is None else rng
            for one, rng in zip(self._seeds(seed), self._rngs, strict=True)
        ]
        if self._batch is None:
            self._batch = self.task.batch(self.num_envs)
        for i in range(self.num_envs):
            self._begin(i, split, None if indices is None else int(indices[i]))
        info: dict[str, Any] = {
            "scenario": self._index.copy(), "split": np.full(self.num_envs, split, object),
            "task": np.full(self.num_envs, self.task.name, object), "digest": np.full(self.num_envs, self.task.digest, object),
        }  # fmt: skip
        info |= {f"_{name}": self._all.copy() for name in tuple(info)}
        self._add_mask(info)
        return self._batch.observations.copy(), info

    def step(self, actions: npt.NDArray[Any]) -> tuple[Float32s, npt.NDArray[np.float64], Bools, Bools, dict[str, Any]]:
        """Take one decision in every row: int64[n] (PagedKV), or what the encoding writes, or levers (float64[n, 6]). Wrong ones are refused and change nothing."""
        batch = self._batch
        if batch is None:
            raise ConfigError("env", "the environment was never reset", allowed="call reset() first")
        batch.actions[:] = self._dense(as_array(actions, "actions"), batch)
        batch.step()
        rewards, terminated, truncated = batch.rewards.copy(), batch.terminated.copy(), batch.truncated.copy()
        terms = batch.terms.copy()
        info: dict[str, Any] = {
            "reward_terms": {name: terms[:, i] for i, name in enumerate(self._names)}, "_reward_terms": self._all.copy(),
        }  # fmt: skip
        over = terminated | truncated
        if over.any():
            for i in np.flatnonzero(over).tolist():
                info = self._finish(info, i, batch)
        self._add_mask(info)
        return batch.observations.copy(), rewards, terminated, truncated, info

    # --- beyond Gymnasium --------------------------------------------------------------------------------------------

    def action_masks(self) -> Masks:
        """int8[n, m]: what each row may do now."""
        if self._batch is None:
            raise ConfigError("env", "the environment was never reset", allowed="call reset() first")
        masks = self._batch.masks
        found = self.encoding.mask(masks, self._batch.observations) if self.encoding else masks
        if found is None:
            raise ConfigError("encoding", "continuous actions have no mask", allowed="multidiscrete, preset, delta")
        return found.copy()

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """Each row's own chance."""
        return tuple(rng if rng is not None else seeding.np_random()[0] for rng in self._rngs)

    @property
    def taken(self) -> npt.NDArray[Any]:
        """The dense actions of the last step, int64[n] or float64[n, 6]: the environment's own array."""
        assert self._batch is not None, "step() comes first"
        return self._batch.actions

    @property
    def standing(self) -> tuple[npt.NDArray[np.int64], list[dict[str, Any]]]:
        """Each row's scenario (index), and the state of its chance: with the actions taken since, all that `stand` needs."""
        if self._batch is None:
            raise ConfigError("env", "the environment was never reset", allowed="call reset() first")
        return self._index.copy(), [dict(rng.bit_generator.state) for rng in self._rngs if rng is not None]

    def stand(
        self, scenarios: npt.NDArray[np.int64], chance: Sequence[dict[str, Any]], actions: Sequence[npt.NDArray[Any]]
    ) -> Float32s:
        """Put every row where it once stood, by playing its scenario again: row i's dense actions so far are `actions[i]`. Observations as `step`'s."""
        if not len(scenarios) == len(chance) == len(actions) == self.num_envs:
            raise ConfigError("rows", f"{len(scenarios)} rows were kept", allowed=f"{self.num_envs}")
        self.reset(seed=0, options={"scenario": scenarios})
        batch = self._batch
        assert batch is not None
        longest = max(len(row) for row in actions)
        for t in range(longest):
            # Rows begin late enough to arrive together; until then they idle.
            for i, row in enumerate(actions):
                at = t - (longest - len(row))
                if at == 0 or (at < 0 and (batch.terminated[i] or batch.truncated[i])):
                    batch.start(i, scenario(self.split, int(scenarios[i])))
                batch.actions[i] = row[at] if at >= 0 else idle(self.task)
            batch.step()
        for i, row in enumerate(actions):
            if len(row) == 0:
                batch.start(i, scenario(self.split, int(scenarios[i])))
        for rng, state in zip(self._rngs, chance, strict=True):
            assert rng is not None
            rng.bit_generator.state = state
        return batch.observations.copy()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "a vector environment cannot be pickled; make a new one from its arguments (single environments can)"
        )

    # --- inside ------------------------------------------------------------------------------------------------------

    def _wanted(self, options: dict[str, Any] | None) -> tuple[str, npt.NDArray[np.int64] | None]:
        split, given = wanted(options, self.split)
        if given is None:
            return split, None
        array = as_array(given, "scenario", f"an index, or {self.num_envs} of them")
        if array.dtype.kind not in "iu" or array.shape not in ((), (self.num_envs,)):
            raise ConfigError("scenario", f"{given!r}", allowed=f"an index, or {self.num_envs} of them")
        indices = np.broadcast_to(array.astype(np.int64), (self.num_envs,))
        for one in indices.tolist():
            scenario(split, one)
        return split, indices

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        """One for each row."""
        if seed is None or isinstance(seed, int | np.integer):
            return [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        allowed = "one number, or one for each row"
        if not isinstance(seed, Sequence | np.ndarray):
            raise ConfigError("seed", f"{seed!r}", allowed=allowed)
        if len(seed) != self.num_envs:
            raise ConfigError("seed", f"{len(seed)} seeds for {self.num_envs} rows", allowed=allowed)
        return [None if one is None else whole(one) if hasattr(one, "__index__") else one for one in seed]

    def _begin(self, row: int, split: str, index: int | None) -> None:
        rng = self._rngs[row]
        assert self._batch is not None
        assert rng is not None
        self._index[row] = int(rng.integers(self.scenarios)) if index is None else index
        self._batch.start(row, scenario(split, int(self._index[row])))

    def _finish(self, info: dict[str, Any], row: int, batch: Batch) -> dict[str, Any]:
        """Keep what the row's episode came to, and begin its next one."""
        mask = self._mask_of(row, batch)
        final: dict[str, Any] = {} if mask is None else {"action_mask": mask}
        final |= {
            "reward_terms": dict(zip(self._names, batch.terms[row].tolist(), strict=True)),
            "outcome": outcome_info(batch.outcome(row)), "facts": batch.facts(row), "scenario": int(self._index[row]),
        }  # fmt: skip
        info = self._add_info(info, {"final_obs": batch.observations[row].copy(), "final_info": final}, row)
        self._begin(row, self.split, None)
        new = {
            "scenario": int(self._index[row]),
            "split": self.split,
            "task": self.task.name,
            "digest": self.task.digest,
        }
        return self._add_info(info, new, row)

    def _mask_of(self, row: int, batch: Batch) -> Masks | None:
        if self.encoding is None:
            own: Masks = batch.masks[row].copy()
            return own
        found = self.encoding.mask(batch.masks[row : row + 1], batch.observations[row : row + 1])
        mask: Masks | None = None if found is None else found[0].copy()
        return mask

    def _add_mask(self, info: dict[str, Any]) -> None:
        assert self._batch is not None
        masks = self._batch.masks
        found = masks if self.encoding is None else self.encoding.mask(masks, self._batch.observations)
        if found is not None:
            info["action_mask"], info["_action_mask"] = found.copy(), self._all.copy()

    def _dense(self, actions: npt.NDArray[Any], batch: Batch) -> npt.NDArray[Any]:
        if self.encoding is None:
            if actions.dtype.kind not in "iu" or actions.shape != (self.num_envs,):
                raise ConfigError(
                    "actions", f"{actions.dtype} of shape {actions.shape}", allowed=f"{self.num_envs} whole numbers"
                )
            # As unsigned, a negative number is a huge one: one comparison checks both ends.
            numbers = actions.astype(np.int64, copy=False)
            if (numbers.view(np.uint64) >= self._choices).any():
                raise ConfigError(
                    "actions", f"{actions.min()}..{actions.max()} is out of range", allowed=f"0..{self._choices - 1}"
                )
            return numbers
        if actions.dtype.kind == "f" and self.encoding.name != "box":
            if actions.shape != (self.num_envs, 6) or np.isnan(actions).any():
                raise ConfigError(
                    "actions",
                    f"{actions.dtype} of shape {actions.shape}",
                    allowed=f"indices, or {self.num_envs} rows of six levers",
                )
            check_levers(actions)
            return actions
        return self.encoding.levers(actions, batch.observations)


def idle(task: Task) -> Any:
    """The dense action that leaves everything as it is."""
    return NOTHING if task.surface.name == "paging" else np.nan
