"""What a policy does when: its choices against the load, the columns its choices hang on, and one episode beside the best static configuration.

Any policy can be explained, since only what it sees and does is looked at; planners, which try out the simulator, cannot.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.decision.columns import Float32s, Floats
from inferencegym.decision.encodings import nearest, show_lever
from inferencegym.decision.knobs import GRID, LEVERS
from inferencegym.decision.paging import NAMES
from inferencegym.envs.actors import BEST_STATIC, actor
from inferencegym.envs.batch import Task
from inferencegym.envs.episode import record
from inferencegym.envs.grade import load_anchors
from inferencegym.envs.splits import scenario
from inferencegym.ground.rng import stream
from inferencegym.learn.decisions import Decisions, choices_of, play, settled
from inferencegym.learn.gradients import Attributions, attributions
from inferencegym.policies.network import NetworkPolicy

#: What counts as load on each surface.
LOADS = {
    "knobs": ("request_arrival_rate", "kv_cache_occupancy", "queue_depth"),
    "paging": ("gpu_utilization_pct", "free_queue_pressure", "vip_queue_pressure"),
}
#: More values of a knob than this are rounded to those of its grid.
_MANY = 10
_BINS, _SHUFFLES, _MOST_ROWS = 8, 3, 20_000
#: Gradients are taken along a path of many points, so of fewer decisions.
_GRADIENT_ROWS = 2000
#: Choices that are made more rarely are put together, on paging, where there are eighteen.
_RARE = 0.005


@dataclass(frozen=True, slots=True)
class Against:
    """How often each choice is made in each interval of a load."""

    what: str
    """The knob, or `action`."""
    load: str
    unit: str
    intervals: tuple[tuple[float, float], ...]
    """From, to: the smallest and largest value in each, natural."""
    decisions: tuple[int, ...]
    """In each interval."""
    choices: tuple[str, ...]
    shares: tuple[tuple[float, ...], ...]
    """For each choice, in each interval."""


@dataclass(frozen=True, slots=True)
class Importance:
    """What hangs on one column."""

    column: str
    unit: str
    changed: float
    """Share of decisions that come out otherwise when the column's values are shuffled among them."""
    by_knob: dict[str, float]
    """The same for each knob."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """One episode, beside the same scenario under another policy. Series have a number for each step."""

    scenario: int
    policy: str
    other: str
    step: str
    """What a step is: window or decision."""
    length: float
    """Of a step: seconds, or 1."""
    seen: dict[str, tuple[list[float], list[float]]]
    """Column -> its natural values under the policy, and under the other; after each step."""
    choices: tuple[list[Any], list[Any]]
    """Settings (six numbers each) or action numbers, of the policy and of the other."""
    ahead: list[float]
    """Return so far, less the other's; the better one's lead. Shorter where one of them ended early."""
    value: float
    other_value: float
    objectives: dict[str, float]
    """Class -> TTFT objective in ms, on knobs."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """All of it, for one policy on one task."""

    task: str
    digest: str
    policy: str
    split: str
    scenarios: int
    decisions: int
    value: float
    """Mean over the scenarios."""
    constant: dict[str, str]
    """Knobs that never moved, and where they stood."""
    against: tuple[Against, ...]
    importance: tuple[Importance, ...]
    """Most important first."""
    attributions: Attributions | None
    """Of a network, by integrated gradients; None for what has no gradients."""
    timeline: Timeline

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return asdict(self)


def explain(
    task: Task, policy: Any, *, split: str = "test", scenarios: int = 8, shown: int | None = None, name: str = ""
) -> Explanation:
    """Explain a policy by the first so many scenarios of a split. `shown`: the scenario of the timeline; unset, the one in the middle by value."""
    indices = range(scenarios)
    seen = play(task, policy, [scenario(split, i) for i in indices])
    if shown is None:
        shown = int(np.argsort(seen.values, kind="stable")[(scenarios - 1) // 2])
    said = name or policy.name
    return Explanation(
        task=task.name, digest=task.digest, policy=said, split=split, scenarios=scenarios, decisions=len(seen), value=float(seen.values.mean()),
        constant=_constant(task, seen), against=tuple(against_load(task, seen)), importance=tuple(importance(task, policy, seen)),
        attributions=gradients(policy, seen), timeline=timeline(task, policy, split=split, index=shown, name=said),
    )  # fmt: skip


def against_load(task: Task, seen: Decisions) -> list[Against]:
    """For each knob that moves, or for the actions, how often each choice is made in each interval of each load."""
    columns = task.surface.columns
    natural = columns.decode(seen.observations)
    found = []
    for what, labels, choice in _choices(task, seen):
        for load in LOADS[task.surface.name]:
            values = natural[:, columns.index(load)]
            places = _intervals(values)
            bins = int(places.max()) + 1
            counts = np.bincount(places, minlength=bins)
            shares = [np.bincount(places[choice == i], minlength=bins) / counts for i in range(len(labels))]
            ends = [(float(values[places == b].min()), float(values[places == b].max())) for b in range(bins)]
            unit = columns[columns.index(load)].unit
            table = tuple(tuple(one.tolist()) for one in shares)
            found.append(Against(what, load, unit, tuple(ends), tuple(counts.tolist()), tuple(labels), table))
    return found


def importance(task: Task, policy: Any, seen: Decisions, *, top: int = 10) -> list[Importance]:
    """The columns that most decisions hang on (permutation importance, Breiman 2001), of the choices and not of the score."""
    chance = stream(0, "explain.shuffle")
    if len(seen) > _MOST_ROWS and hasattr(policy, "scores_of"):
        # One that remembers must be shown whole episodes.
        seen = seen.take(np.sort(chance.choice(len(seen), _MOST_ROWS, replace=False)))
    usual = choices_of(task, policy, seen, seen.observations)
    found = []
    for i, column in enumerate(task.surface.columns):
        if np.ptp(seen.observations[:, i]) == 0.0:
            continue
        changes: list[npt.NDArray[np.bool_]] = []
        for _ in range(_SHUFFLES):
            shuffled: Float32s = seen.observations.copy()
            shuffled[:, i] = chance.permutation(shuffled[:, i])
            changes.append(np.asarray(choices_of(task, policy, seen, shuffled) != usual))
        changed: npt.NDArray[np.bool_] = np.concatenate(changes)
        by_knob = {}
        if changed.ndim == 2:
            by_knob = {name: float(changed[:, k].mean()) for k, name in enumerate(LEVERS) if changed[:, k].any()}
            changed = np.asarray(changed.any(axis=1))
        found.append(Importance(column.name, column.unit, float(changed.mean()), by_knob))
    return sorted(found, key=lambda one: -one.changed)[:top]


def gradients(policy: Any, seen: Decisions) -> Attributions | None:
    """What each column adds to a network's choices; None for a table, a tree or a rule, whose answers are steps or have no weights."""
    if not isinstance(policy, NetworkPolicy):
        return None
    if len(seen) > _GRADIENT_ROWS:
        chance = stream(0, "explain.gradients")
        seen = seen.take(np.sort(chance.choice(len(seen), _GRADIENT_ROWS, replace=False)))
    return attributions(policy, seen.observations, seen.masks)


def timeline(task: Task, policy: Any, *, split: str, index: int, name: str) -> Timeline:
    """An episode of the policy, and of the best static configuration (where it was never searched: of the task's start) on the same scenario."""
    knobs = task.surface.name == "knobs"
    other = actor(BEST_STATIC if load_anchors(task) else "do-nothing", task)
    both = [record(task, one, split=split, scenario=index) for one in (policy, other)]
    columns = task.surface.columns
    natural = [columns.decode(one.observations[1:]) for one in both]
    wanted = (
        ("request_arrival_rate", "p99_ttft_ms", "queue_depth", "kv_cache_occupancy")
        if knobs
        else ("gpu_utilization_pct", "free_queue_pressure", "vip_queue_pressure")
    )
    steps = min(len(one.actions) for one in both)
    ahead: Floats = np.cumsum(both[0].rewards[:steps] - both[1].rewards[:steps])
    file = getattr(task, "file", None)
    return Timeline(
        scenario=index, policy=name, other=other.name, step="window" if knobs else "decision", length=float(file.window_s) if file else 1.0,
        seen={one: (natural[0][:, columns.index(one)].tolist(), natural[1][:, columns.index(one)].tolist()) for one in wanted},
        choices=(_plain(task, both[0]), _plain(task, both[1])), ahead=ahead.tolist(), value=both[0].value, other_value=both[1].value,
        objectives={one.name: 1000.0 * one.ttft_s for one in file.classes} if file else {},
    )  # fmt: skip


def _plain(task: Task, episode: Any) -> list[Any]:
    """Its actions as plain numbers; knobs as they were to stand."""
    found: list[Any] = settled(task, episode.actions, episode.observations[:-1]).tolist()
    return found


def _choices(task: Task, seen: Decisions) -> list[tuple[str, list[str], npt.NDArray[np.int64]]]:
    """(knob or `action`, its choices in words, int64[n] which one), of what is not always the same."""
    if task.surface.name == "paging":
        counts = np.bincount(seen.choices, minlength=len(NAMES))
        often = [i for i in np.argsort(-counts, kind="stable").tolist() if counts[i] > _RARE * len(seen)]
        place = np.full(len(NAMES), len(often))
        place[often] = np.arange(len(often))
        labels = [NAMES[i] for i in often] + (["rarer ones"] if counts.sum() > counts[often].sum() else [])
        return [("action", labels, place[seen.choices])]
    found = []
    for k, name in enumerate(LEVERS):
        chosen = np.round(seen.choices[:, k], 3)
        if len(np.unique(chosen)) > _MANY:
            chosen = np.array(GRID[name])[nearest(seen.choices)[:, k]]
        values, which = np.unique(chosen, return_inverse=True)
        if len(values) > 1:
            found.append((name, [show_lever(name, value) for value in values.tolist()], which.reshape(-1)))
    return found


def _constant(task: Task, seen: Decisions) -> dict[str, str]:
    if task.surface.name == "paging":
        return {}
    stood = np.round(seen.choices, 3)
    return {name: show_lever(name, float(stood[0, k])) for k, name in enumerate(LEVERS) if np.ptp(stood[:, k]) == 0.0}


def _intervals(values: Floats) -> npt.NDArray[np.int64]:
    """int64[n]: in which of at most eight intervals of about as many decisions each value lies; equal values are never parted."""
    edges: Floats = np.unique(np.quantile(values, np.arange(1, _BINS) / _BINS))
    more = values[values > values.min()]
    if edges[0] == values.min() and len(more):
        # Where the least value is so frequent (an empty queue), what is above it stands apart.
        edges = np.unique(np.append(edges, more.min()))
    places = np.searchsorted(edges, values, side="right")
    _, found = np.unique(places, return_inverse=True)
    return found.reshape(-1).astype(np.int64)
