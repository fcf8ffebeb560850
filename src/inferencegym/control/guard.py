"""Who may steer, and how far: the guard between a policy and a plant. Pure: it has no clock, asks nobody, and sends nothing.

Each window the loop shows it the snapshot (`look`), says how the policy's answer came (`answered`), has the command held to its limits (`hold`)
and tells what was refused (`refused`). Whatever it decides comes with a reason in words. Times in seconds, spells in windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from inferencegym.control.limits import Limits, hold
from inferencegym.decision.columns import Masks
from inferencegym.decision.encodings import nearest
from inferencegym.decision.knobs import COLUMNS, GRID, LEVERS, Applied, Knobs
from inferencegym.decision.snapshot import Snapshot
from inferencegym.decision.turn import in_force, mask_without
from inferencegym.ground.errors import ConfigError

#: Who decides in a window.
POLICY, FALLBACK, FOUND, NOBODY = "policy", "fallback", "found", "nobody"
#: Under what name it is told to those who look at the gateway.
NAME = "guard"
_TIER = "quantization_tier"
#: How many times `calm_windows` a policy that was sent away often has to wait.
_MOST_PATIENCE = 16


@dataclass(frozen=True, slots=True)
class Rules:
    """When the guard steps in."""

    limits: Limits = field(default_factory=Limits)
    stale_windows: float = 3.0
    """A snapshot older than so many windows, or so many windows without one, ends the policy's turn."""
    slo_below: float = 0.8
    """Share of first tokens within their objectives below which a window counts as bad."""
    ttft_most_ms: float = math.inf
    """p99 of the time to first token above which a window counts as bad too: for gateways without objectives of their own."""
    slo_windows: int = 3
    """Bad windows, one after the other, that end the policy's turn."""
    calm_slo: float = 0.95
    """Share from which a window counts as calm; above `slo_below`."""
    calm_windows: int = 6
    """Calm windows, one after the other, after which the policy comes back; twice as many after each further turn that was ended, up to 16 times."""
    strikes: int = 3
    """Windows in a row that the policy raises, is too slow or gives no command, which end its turn; in each the fallback stands in."""
    refused_windows: int = 30
    """Windows that a knob which the plant refused is left alone."""
    slow_share: float = 0.5
    """Share of a window in which a policy must answer."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.slo_below < self.calm_slo <= 1.0:
            raise ConfigError("rules.calm_slo", f"{self.calm_slo:g} with slo_below {self.slo_below:g}", allowed="0 <= slo_below < calm_slo <= 1")  # fmt: skip
        if not self.ttft_most_ms > 0.0:
            raise ConfigError("rules.ttft_most_ms", f"{self.ttft_most_ms:g}", allowed="more than 0")
        if not 0.0 < self.slow_share <= 1.0 or not self.stale_windows > 0.0:
            raise ConfigError("rules", f"slow_share {self.slow_share:g}, stale_windows {self.stale_windows:g}", allowed="0 < slow_share <= 1, stale_windows > 0")  # fmt: skip
        for name in ("slo_windows", "calm_windows", "strikes", "refused_windows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rules.{name}", f"{getattr(self, name)}", allowed="1 or more")


@dataclass(frozen=True, slots=True)
class Look:
    """What the guard makes of a snapshot."""

    driver: str
    """Who decides in this window: policy, fallback, found (the settings found at the start) or nobody (nothing is sent)."""
    reasons: tuple[str, ...]
    odd: dict[str, float]
    """Columns whose value the surface's range does not hold: name to how far outside, in the column's unit. They saturate in the observation."""


@dataclass(frozen=True, slots=True)
class _Barred:
    """A knob that the plant refused."""

    values: dict[float, int]
    """Levers of the grid that are not to be tried: to the windows for which."""
    wholly: bool
    """Whether the knob is left alone altogether."""
    why: str


class Guard:
    """Watches one session."""

    def __init__(self, rules: Rules | None = None, *, window_s: float, fallback: str = "") -> None:
        """`fallback`: its name; empty: there is none, so objectives missed end nothing, and a bad answer leaves the knobs as they are."""
        if not 0.0 < window_s < math.inf:
            raise ConfigError("window_s", f"{window_s:g}", allowed="more than 0")
        self.rules, self.window_s, self.fallback = rules or Rules(), window_s, fallback
        self.driver = POLICY
        self.trips = 0
        """How often the policy's turn was ended."""
        self._why = ""
        self._missing = self._bad = self._calm = self._strikes = 0
        self._barred: dict[str, _Barred] = {}

    def look(self, snapshot: Snapshot | None, problem: str = "") -> Look:
        """Judge this window's snapshot; None: there is none, because of `problem`."""
        self._forget_refusals()
        rules = self.rules
        if snapshot is None:
            self._missing, self._calm = self._missing + 1, 0
            reasons = [f"no snapshot ({problem}), window {self._missing} without one: nothing is sent"]
            if self._missing > rules.stale_windows:
                reasons += self._trip(f"{self._missing} windows without a snapshot")
            return Look(NOBODY, tuple(reasons), {})
        back_after, self._missing = self._missing, 0
        odd = outside(snapshot)
        reasons = [f"a snapshot again after {back_after} windows without"] if back_after else []
        age_windows = snapshot.snapshot_age_s / self.window_s
        if not age_windows <= rules.stale_windows:
            self._calm = 0
            said = f"figures are {snapshot.snapshot_age_s:.1f} s old, more than {rules.stale_windows:g} windows"
            self._trip(said)
            return Look(FOUND, (*reasons, f"{said}: the settings found at the start"), odd)
        reasons += self._judge(snapshot.slo_compliance_rate, snapshot.p99_ttft_ms)
        if odd:
            far = ", ".join(f"{name} by {distance:.4g}" for name, distance in odd.items())
            reasons.append(f"outside the range that policies know: {far}")
        return Look(self.driver, tuple(reasons), odd)

    def _judge(self, slo: float, ttft_ms: float) -> list[str]:
        """Count good and bad windows; figures that are not known are neither."""
        rules = self.rules
        late = ttft_ms > rules.ttft_most_ms
        if self.driver == POLICY:
            self._bad = self._bad + 1 if slo < rules.slo_below or late else 0
            if self._bad >= rules.slo_windows and self.fallback:
                said = (
                    f"p99 TTFT {ttft_ms:,.0f} ms is above {rules.ttft_most_ms:,.0f}"
                    if late
                    else f"SLO {slo:.0%} is below {rules.slo_below:.0%}"
                )
                return self._trip(f"{said} for {self._bad} windows" if self._bad > 1 else said)
            return []
        self._calm = self._calm + 1 if slo >= rules.calm_slo and not late else 0
        needed = rules.calm_windows * min(2 ** max(self.trips - 1, 0), _MOST_PATIENCE)
        if self._calm >= needed:
            self.driver, self._bad, self._strikes = POLICY, 0, 0
            return [f"{self._calm} calm windows: the policy is back"]
        return [f"the {self._stand_in()} steers since {self._why}; {self._calm} of {needed} calm windows"]

    def answered(self, problem: str) -> tuple[str, tuple[str, ...]]:
        """Who decides, now that the policy was asked: `problem` is what was wrong with its answer, empty if nothing."""
        if not problem:
            self._strikes = 0
            return POLICY, ()
        self._strikes += 1
        reasons = [f"the policy {problem}: the {self._stand_in()} stands in"]
        if self._strikes >= self.rules.strikes:
            reasons += self._trip(f"{self._strikes} bad answers in a row")
        return (FALLBACK if self.fallback else NOBODY), tuple(reasons)

    def hold(self, command: Knobs, snapshot: Snapshot) -> tuple[Knobs, tuple[str, ...]]:
        """The command as it may be sent: within the limits, and without knobs that the plant refuses."""
        now = in_force(snapshot)
        command, held = hold(command, now, self.rules.limits)
        levers = command.levers()
        reasons: list[str] = []
        for name, bar in self._barred.items():
            value = float(levers[LEVERS.index(name)])
            if not math.isnan(value) and (bar.wholly or value in bar.values):
                levers[LEVERS.index(name)] = math.nan
                held.pop(name, None)
                # One that is left at what it is needs no word.
                if value != now[LEVERS.index(name)]:
                    reasons.append(f"{name} is left alone, it was refused: {bar.why}")
        return Knobs.of(levers), (*held.values(), *reasons)

    def refused(self, applied: Applied, sent: Knobs, snapshot: Snapshot) -> tuple[str, ...]:
        """Remember what the plant would not do: of the tier the one value, if another is in force; of any other knob all but what is in force."""
        levers, now = sent.levers(), nearest(in_force(snapshot)[None])[0]
        known = [name for name in LEVERS if name in applied.refused]
        for name in known:
            standing, value = GRID[name][now[LEVERS.index(name)]], float(levers[LEVERS.index(name)])
            wholly = name != _TIER or value == standing
            values = set(GRID[name]) - {standing} if wholly else {value}
            before = self._barred[name].values if name in self._barred else {}
            spell = before | dict.fromkeys(values, self.rules.refused_windows)
            self._barred[name] = _Barred(spell, wholly, applied.refused[name])
        return tuple(f"{name} refused: {applied.refused[name]}" for name in known)

    def mask(self) -> Masks:
        """int8[m]: what a policy may choose, as far as the plant's refusals say."""
        return mask_without({name: bar.values for name, bar in self._barred.items()})

    def _forget_refusals(self) -> None:
        for name, bar in list(self._barred.items()):
            left = {value: windows - 1 for value, windows in bar.values.items() if windows > 1}
            if left:
                self._barred[name] = _Barred(left, bar.wholly, bar.why)
            else:
                del self._barred[name]

    def _trip(self, why: str) -> list[str]:
        """End the policy's turn, if it has one and somebody else is there."""
        if self.driver != POLICY or not self.fallback:
            return []
        self.driver, self._why, self._calm, self._bad, self._strikes = FALLBACK, why, 0, 0, 0
        self.trips += 1
        return [f"{why}: the {self._stand_in()} takes over"]

    def _stand_in(self) -> str:
        return f"fallback {self.fallback}" if self.fallback else "setting in force"


def outside(snapshot: Snapshot) -> dict[str, float]:
    """Columns beyond the surface's range: name to the distance, in the column's unit. A value that is not known is not one of them."""
    found = {}
    for column, value in zip(COLUMNS, snapshot.values().tolist(), strict=True):
        distance = max(column.low - value, value - column.high)
        if distance > 0.0:
            found[column.name] = distance
    return found
