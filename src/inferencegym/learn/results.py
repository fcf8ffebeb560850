"""What trained policies are worth on test scenarios, all seeds together: interquartile means, intervals, and the share of the gap that they close.

Values stand in a matrix, a row a training seed, a column a test scenario. Both are draws, so an interval's resampling draws both, crossed:
whole seeds and whole scenarios, the latter for everybody at once (best static, rules and planner played the same ones). Values have no unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.envs.actors import BEST_STATIC, PLANNERS
from inferencegym.envs.grade import Anchors
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.rng import stream
from inferencegym.learn.statistics import REPEATS, Estimate, estimate, interquartile_means

Floats = npt.NDArray[np.float64]
CLAIRVOYANT, RANDOM, NOTHING = "clairvoyant", "random", "do-nothing"
#: A gap narrower than this, in value, is not divided by.
_LEAST_GAP = 1e-3


@dataclass(frozen=True, slots=True)
class Standing:
    """A task's learned policies beside what they are held against; all are interquartile means of values over the same test scenarios."""

    seeds: int
    scenarios: int
    learned: Estimate
    best_static: Estimate
    best_rule: Estimate
    rule: str
    """The rule with the best mean on these very test scenarios, which flatters it."""
    clairvoyant: Estimate
    over_static: Estimate
    """Learned above best static, on the same scenarios."""
    over_rule: Estimate
    closed: Estimate | None
    """Share of the gap from best static to clairvoyant; None if there is hardly a gap."""
    closed_from_rule: Estimate | None
    """The same from the best rule or best static, whichever is better."""
    grade: Estimate
    """Learned on the scale of grades (0 random, 1 clairvoyant), not held to 0..1."""

    @property
    def verdict(self) -> str:
        """Against the best static configuration and every rule: beats, no worse, or worse; beats means that the intervals do not overlap."""
        other = max(self.best_static, self.best_rule, key=lambda one: one.value)
        above = min(self.over_static, self.over_rule, key=lambda one: one.value)
        if self.learned.low > other.high:
            return "beats"
        if above.low > 0:
            return "better on the same scenarios"
        return "no worse" if above.high >= 0 else "worse"

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return asdict(self) | {"verdict": self.verdict}


def standing(values: npt.ArrayLike, anchors: Anchors, scenarios: Sequence[int], *, repeats: int = REPEATS) -> Standing:
    """How values (seeds x scenarios) of a task's learned policies stand against the anchors' on the same scenarios."""
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] != len(scenarios) or matrix.size == 0 or not np.isfinite(matrix).all():
        raise ConfigError(
            "values", f"are of shape {matrix.shape}", allowed=f"finite, seeds x {len(scenarios)} scenarios"
        )
    others = references(anchors, scenarios)
    rule = best_rule(others)
    floor, ceiling = np.array([anchors.bounds(anchors.split, index) for index in scenarios]).T
    rows, columns = _drawn(matrix.shape[0], matrix.shape[1], repeats)
    drawn = matrix[rows[:, :, None], columns[:, None, :]]
    scale = (ceiling - floor)[columns][:, None, :]
    found = {
        name: _Figure(interquartile_means(row[None]), interquartile_means(row[columns])) for name, row in others.items()
    }
    learned = _Figure(interquartile_means(matrix.reshape(1, -1)), interquartile_means(drawn.reshape(repeats, -1)))
    graded = _Figure(
        interquartile_means(((matrix - floor) / (ceiling - floor)).reshape(1, -1)),
        interquartile_means(((drawn - floor[columns][:, None, :]) / scale).reshape(repeats, -1)),
    )

    def over(name: str) -> _Figure:
        row = others[name]
        return _Figure(
            interquartile_means((matrix - row).reshape(1, -1)),
            interquartile_means((drawn - row[columns][:, None, :]).reshape(repeats, -1)),
        )

    start = max((found[BEST_STATIC], found[rule]), key=lambda one: float(one.value[0]))
    return Standing(
        seeds=matrix.shape[0], scenarios=matrix.shape[1], learned=learned.estimate, best_static=found[BEST_STATIC].estimate,
        best_rule=found[rule].estimate, rule=rule, clairvoyant=found[CLAIRVOYANT].estimate, over_static=over(BEST_STATIC).estimate,
        over_rule=over(rule).estimate, closed=_closed(learned, found[BEST_STATIC], found[CLAIRVOYANT]),
        closed_from_rule=_closed(learned, start, found[CLAIRVOYANT]), grade=graded.estimate,
    )  # fmt: skip


def references(anchors: Anchors, scenarios: Sequence[int]) -> dict[str, Floats]:
    """The stored values of everybody on these test scenarios; ConfigError if they were not all played."""
    at = {scenario: i for i, scenario in enumerate(anchors.scenarios)}
    missing = [index for index in scenarios if index not in at]
    if missing:
        raise ConfigError("scenarios", f"{missing[0]} of '{anchors.task}' has no anchors", allowed=f"{len(at)} scenarios: 0..{len(at) - 1}; or more: runs/anchors.sh")  # fmt: skip
    chosen = [at[index] for index in scenarios]
    return {who: np.asarray(row, dtype=np.float64)[chosen] for who, row in anchors.values.items()}


def best_rule(values: Mapping[str, Floats]) -> str:
    """Of the rules, the one with the best mean."""
    planners = {name for names in PLANNERS.values() for name in names}
    rules = [who for who in values if who not in {RANDOM, NOTHING, BEST_STATIC, *planners}]
    return max(rules, key=lambda who: float(values[who].mean())) if rules else NOTHING


@dataclass(frozen=True, slots=True)
class _Figure:
    value: Floats
    """float64[1]."""
    drawn: Floats
    """float64[repeats]."""

    @property
    def estimate(self) -> Estimate:
        return estimate(float(self.value[0]), self.drawn)


def _closed(learned: _Figure, start: _Figure, end: _Figure) -> Estimate | None:
    gap = end.drawn - start.drawn
    if not (gap > _LEAST_GAP).all():
        return None
    return _Figure(
        (learned.value - start.value) / (end.value - start.value), (learned.drawn - start.drawn) / gap
    ).estimate


def _drawn(seeds: int, scenarios: int, repeats: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    rng = stream(0, "results.bootstrap")
    return rng.integers(0, seeds, (repeats, seeds)), rng.integers(0, scenarios, (repeats, scenarios))
