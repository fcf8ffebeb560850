"""Old news, as a slow scrape would bring it: what rows saw some decisions ago, and a wrapper that shows it to a policy.

Seen is a whole old observation, the knobs then in force with it, but the clock as it is: `window_s` and `episode_fraction` are
now's. On the surface `knobs` the column `snapshot_age_s` says how old the rest is. The mask is now's, since the plant itself refuses what cannot be.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inferencegym.decision.columns import Float32s, Masks
from inferencegym.decision.surface import Action
from inferencegym.ground.errors import ConfigError
from inferencegym.policies.simple import surface_of

_CLOCK = ("window_s", "episode_fraction")
_AGE = "snapshot_age_s"


class History:
    """The last observations of n rows. Each row's news are so many decisions old; at an episode's beginning, where nothing is that old, it is shown the first."""

    def __init__(self, surface: str, rows: int, most: int, *, tell_age: bool = True) -> None:
        """`most`: decisions that the oldest news may be old; `tell_age`: whether rows are told so, where there is a column for it."""
        self._columns = surface_of(surface).columns
        names = self._columns.names
        self.tell_age = tell_age and _AGE in names
        self._clock = [i for i, name in enumerate(names) if name in _CLOCK]
        # Ring [age slots, rows, columns]: observation t of a row stands in slot t modulo the slots.
        self._ring: Float32s = np.zeros((most + 1, rows, len(names)), np.float32)
        self._seen = np.zeros(rows, np.int64)
        self._delays = np.zeros(rows, np.int64)
        self._rows = np.arange(rows)

    def begin(self, row: int, observation: Float32s, decisions: int) -> None:
        """A row's episode begins, with its first observation, float32[k]; its news will be so many decisions old."""
        assert 0 <= decisions < len(self._ring), "no older than the history remembers"
        self._ring[0, row], self._seen[row], self._delays[row] = observation, 1, decisions

    def add(self, observations: Float32s) -> None:
        """What all rows see now, float32[n, k]."""
        self._ring[self._seen % len(self._ring), self._rows] = observations
        self._seen += 1

    def shown(self) -> Float32s:
        """float32[n, k]: what each row is shown now; a new array."""
        last = self._seen - 1
        ages = np.minimum(self._delays, last)
        now = self._ring[last % len(self._ring), self._rows]
        old: Float32s = self._ring[(last - ages) % len(self._ring), self._rows]
        old[:, self._clock] = now[:, self._clock]
        if self.tell_age and ages.any():
            self._write_ages(old, ages)
        return old

    def copy_from(self, other: History, row: int, copies: int) -> None:
        """The first `copies` rows go on from another history's row, which remembers as long."""
        self._ring[:, :copies] = other._ring[:, row : row + 1]
        self._seen[:copies], self._delays[:copies] = other._seen[row], other._delays[row]

    def _write_ages(self, observations: Float32s, ages: Any) -> None:
        late = ages > 0
        natural = self._columns.decode(observations[late])
        at = self._columns.index(_AGE)
        natural[:, at] += ages[late] * natural[:, self._columns.index("window_s")]
        observations[late, at] = self._columns.encode(natural)[:, at]


class Delayed:
    """A policy whose observations are some decisions old."""

    def __init__(self, policy: Any, decisions: int, *, tell_age: bool = True) -> None:
        """`decisions`: how old, in windows (knobs) or decisions (paging, where a task says how many make a tick); `tell_age`: whether the policy is told so."""
        if decisions < 0:
            raise ConfigError("decisions", f"{decisions}", allowed="0 or more")
        if not hasattr(policy, "act"):
            raise ConfigError(
                "policy", f"'{getattr(policy, 'name', policy)}' plans on the simulator itself", allowed="a policy"
            )
        self.policy, self.decisions = policy, decisions
        self.surface: str = policy.surface
        self._history = History(self.surface, 1, decisions, tell_age=tell_age)
        self.tell_age = self._history.tell_age
        self.name = f"{policy.name}, {decisions} old" + ("" if self.tell_age or not decisions else ", not told")
        self._begun = False

    def start(self, seed: int) -> None:
        """A new episode: nothing has been seen."""
        self._begun = False
        self.policy.start(seed)

    def act(self, observation: Float32s, mask: Masks) -> Action:
        """What the policy does about the past."""
        if self._begun:
            self._history.add(observation[None])
        else:
            self._history.begin(0, observation, self.decisions)
            self._begun = True
        return self.policy.act(self._history.shown()[0], mask)
