"""How far a command may go: a range for each knob, and the largest change in one window. What goes too far is held, with the reason in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from inferencegym.decision.columns import Floats
from inferencegym.decision.encodings import show_lever
from inferencegym.decision.knobs import GRID, LEVERS, RANGES, Knobs
from inferencegym.ground.errors import ConfigError

_NEARLY = 1e-9


def _widest(name: str) -> tuple[float, float]:
    return RANGES.get(name, (GRID[name][0], GRID[name][-1]))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a command may be. Values are levers: tiers count 0 FP16, 1 INT8, 2 INT4; switches 0 and 1."""

    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Knob to (least, most), within the surface's range; a knob that is not named has the surface's."""
    batch_factor: float = 4.0
    """What batch_cap may be multiplied or divided by in one window; inf: no limit."""
    steps: Mapping[str, float] = field(default_factory=lambda: {"kv_budget_fraction": 0.5, "quantization_tier": 1.0})
    """Knob to the largest change in one window (not batch_cap); a knob that is not named may change at will."""

    def __post_init__(self) -> None:
        for name in (*self.ranges, *self.steps):
            if name not in LEVERS:
                raise ConfigError("limits", f"there is no knob '{name}'", allowed=", ".join(LEVERS))
        for name, (low, high) in self.ranges.items():
            least, most = _widest(name)
            if not least <= low <= high <= most or (name != "kv_budget_fraction" and (low != int(low) or high != int(high))):  # fmt: skip
                raise ConfigError(f"limits.{name}", f"{low:g}..{high:g} is no range of it", allowed=f"within {least:g}..{most:g}")  # fmt: skip
        if not self.batch_factor >= 2.0:
            raise ConfigError("limits.batch_factor", f"{self.batch_factor:g}", allowed="2 or more")
        for name, step in self.steps.items():
            smallest = 0.01 if name == "kv_budget_fraction" else 1.0
            if name == "batch_cap" or not step >= smallest:
                raise ConfigError(f"limits.steps.{name}", f"{step:g}", allowed=f"{smallest:g} or more; batch_cap has batch_factor")  # fmt: skip

    def allowed(self, name: str, now: float) -> tuple[float, float, str]:
        """(least, most, what the narrower one is called) of a knob that stands at `now` (NaN: not known). The range goes before the step."""
        low, high = self.ranges.get(name, _widest(name))
        why = f"allowed are {show_lever(name, low)} to {show_lever(name, high)}"
        if math.isnan(now):
            return low, high, why
        if name == "batch_cap":
            near, far = now / self.batch_factor, now * self.batch_factor
            said = f"at most a factor of {self.batch_factor:g} a window"
        elif name in self.steps:
            near, far = now - self.steps[name], now + self.steps[name]
            said = f"at most {self.steps[name]:g} a window"
        else:
            return low, high, why
        if near > high or far < low:  # it stands far outside its range: the way back is not held up
            return low, high, why
        least, most = max(low, near), min(high, far)
        if name != "kv_budget_fraction":
            least, most = math.ceil(least), math.floor(most)
        return least, most, said if near > low or far < high else why


#: No limit but the surface's own ranges.
OPEN = Limits(batch_factor=math.inf, steps={})


def hold(command: Knobs, now: Floats, limits: Limits) -> tuple[Knobs, dict[str, str]]:
    """The command within the limits, and for each knob that was held the reason. `now`: float64[6], the knobs in force; NaN: not known."""
    levers = command.levers()
    held: dict[str, str] = {}
    for i, name in enumerate(LEVERS):
        wanted = float(levers[i])
        if math.isnan(wanted):
            continue
        low, high, why = limits.allowed(name, float(now[i]))
        value = min(max(wanted, low), high)
        if abs(value - wanted) > _NEARLY:
            levers[i] = value
            held[name] = f"{name} {show_lever(name, wanted)} held to {show_lever(name, value)}: {why}"
    return (Knobs.of(levers) if held else command), held


def found(now: Floats) -> tuple[Knobs, tuple[str, ...]]:
    """The knobs in force as a command that puts them back, and what it cannot say: values beyond a knob's range, values not known."""
    levers, notes = now.copy(), []
    for i, name in enumerate(LEVERS):
        low, high = _widest(name)
        if math.isnan(levers[i]):
            notes.append(f"{name} is not known and cannot be given back")
        elif not low <= levers[i] <= high:
            notes.append(f"{name} stood at {levers[i]:g}; as a knob it goes from {low:g} to {high:g}")  # fmt: skip
            levers[i] = np.clip(levers[i], low, high)
    return Knobs.of(levers), tuple(notes)
