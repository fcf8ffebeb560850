"""What a policy is worth when its news is old: a wrapper that shows it the observation of some decisions ago, as a slow scrape would.

The wrapped policy sees a whole old observation, the knobs then in force with it, but the clock as it is: `window_s` and `episode_fraction` are
now's. On the surface `knobs` the column `snapshot_age_s` says how old the rest is. The mask is now's, since the plant itself refuses what cannot be.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from inferencegym.decision.columns import Columns, Float32s, Masks
from inferencegym.decision.surface import Action
from inferencegym.ground.errors import ConfigError
from inferencegym.policies.simple import surface_of

_CLOCK = ("window_s", "episode_fraction")
_AGE = "snapshot_age_s"


class Delayed:
    """A policy whose observations are some decisions old. At an episode's beginning, where nothing is that old, it sees the first."""

    def __init__(self, policy: Any, decisions: int, *, tell_age: bool = True) -> None:
        """`decisions`: how old, in windows (knobs) or ticks (paging); `tell_age`: whether the policy is told so."""
        if decisions < 0:
            raise ConfigError("decisions", f"{decisions}", allowed="0 or more")
        if not hasattr(policy, "act"):
            raise ConfigError(
                "policy", f"'{getattr(policy, 'name', policy)}' plans on the simulator itself", allowed="a policy"
            )
        self.policy, self.decisions = policy, decisions
        self.surface: str = policy.surface
        self.tell_age = tell_age and _AGE in surface_of(self.surface).columns.names
        self.name = f"{policy.name}, {decisions} old" + ("" if self.tell_age or not decisions else ", not told")
        self._columns: Columns = surface_of(self.surface).columns
        self._clock = [i for i, name in enumerate(self._columns.names) if name in _CLOCK]
        self._seen: deque[Float32s] = deque(maxlen=decisions + 1)

    def start(self, seed: int) -> None:
        """A new episode: nothing has been seen."""
        self._seen.clear()
        self.policy.start(seed)

    def act(self, observation: Float32s, mask: Masks) -> Action:
        """What the policy does about the past."""
        self._seen.append(observation.copy())
        if not self.decisions:
            return self.policy.act(observation, mask)
        old = self._seen[0].copy()
        old[self._clock] = observation[self._clock]
        if self.tell_age:
            self._write_age(old, len(self._seen) - 1)
        return self.policy.act(old, mask)

    def _write_age(self, observation: Float32s, decisions: int) -> None:
        natural = self._columns.decode(observation)
        natural[self._columns.index(_AGE)] += decisions * natural[self._columns.index("window_s")]
        at = self._columns.index(_AGE)
        observation[at] = self._columns.encode(natural)[at]
