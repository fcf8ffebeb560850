"""What the Episode page asks for, answered at the Desk: the decisions of an episode with mask and reward, its course, and its state at any moment.

The functions take an `Asked` and give plain data for JSON. The last few episodes stay at hand as replays, so that scrubbing costs milliseconds.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inferencegym.decision import paging
from inferencegym.decision.knobs import GRID, LEVERS, OFFSETS, QUANTIZATION_TIERS
from inferencegym.envs import pool
from inferencegym.envs.pagedkv import PagedTask
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import ConfigError
from inferencegym.web import machine
from inferencegym.web.replay import Replay

#: Most decisions that `rows` gives at once, and points of a reward term's course.
MOST_ROWS, MOST_POINTS = 500, 1000
#: Replays at hand: as many as a run has policies.
_KEPT = 6
_replays: OrderedDict[str, Replay] = OrderedDict()


@dataclass(frozen=True, slots=True)
class Asked:
    """One policy's episode in a run, as far as it has come; what every function here is given."""

    key: str
    """Of the episode: the same for the same run and policy."""
    task: str
    split: str
    seed: int
    """Index of the scenario within the split."""
    actions: bytes
    """Dense actions so far: int64 (paging) or float64 by six (knobs)."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """(policy, result) of those who have played the same scenario to its end."""


def replay(asked: Asked) -> Replay:
    """The episode, played as far as its actions go."""
    found = _replays.pop(asked.key, None)
    if found is None:
        found = Replay(machine.task_of(asked.task, asked.overrides), scenario(asked.split, asked.seed))
    _replays[asked.key] = found
    while len(_replays) > _KEPT:
        _replays.popitem(last=False)
    given = np.frombuffer(asked.actions, found.actions.dtype)
    found.extend(given.reshape(-1, *found.actions.shape[1:]))
    return found


def rows(asked: Asked, first: int, count: int, only: str = "") -> dict[str, Any]:
    """`count` decisions from the `first` on, of all or of some: `only` is an action's number, illegal, or turned (a knob was).

    Observations are in natural units, six digits, as the policy saw them (saturated at a column's end). `total` counts the decisions that are meant.
    """
    if not 1 <= count <= MOST_ROWS:
        raise ConfigError("count", f"{count}", allowed=f"1..{MOST_ROWS}")
    if first < 0:
        raise ConfigError("first", f"{first}", allowed="0 or more")
    found = replay(asked)
    surface = found.task.surface
    meant = _meant(found, only)
    listed = []
    for d in meant[first : first + count]:
        action, mask = found.actions[d], found.masks[d]
        listed.append({
            "decision": d, "sample": d // found.per_sample, "action": plain(action), "words": words(found, d),
            "legal": legal(found, d), "mask": allowed(mask, surface.name),
            "reward": float(found.rewards[d]), "terms": found.terms[d].tolist(),
            "observation": [_short(x) for x in surface.columns.decode(found.observations[d]).tolist()],
        })  # fmt: skip
    return {
        "first": first, "total": len(meant), "terms": list(found.task.reward_terms), "actions": _actions(surface.name),
        "columns": [{"name": c.name, "unit": c.unit, "what": c.what} for c in surface.columns], "rows": listed,
    }  # fmt: skip


def _meant(found: Replay, only: str) -> Sequence[int]:
    everything = range(found.total)
    if not only:
        return everything
    if only == "illegal":
        return [d for d in everything if not legal(found, d)]
    if only == "turned" and found.levers is not None:
        return (np.flatnonzero((np.diff(found.levers[: found.total + 1], axis=0) != 0).any(axis=1))).tolist()
    if found.levers is None and only.isascii() and only.isdigit() and int(only) < len(paging.ACTIONS):
        return np.flatnonzero(found.actions[: found.total] == int(only)).tolist()
    raise ConfigError(
        "only", f"'{only[:40]}' is not known", allowed="an action's number, illegal, or, of knobs, turned"
    )


def legal(found: Replay, decision: int) -> bool:
    """Whether the mask let the action pass."""
    action, mask = found.actions[decision], found.masks[decision]
    if found.levers is None:
        return bool(mask[int(action)])
    return bool(found.task.surface.legal(found.task.surface.action(action), mask))


def course(asked: Asked, first: int = 0) -> dict[str, Any]:
    """Every action from decision `first` on (numbers on paging, knobs in force on knobs) and the sums of the reward's terms over the episode."""
    found = replay(asked)
    n, surface = found.total, found.task.surface
    told: dict[str, Any] = {
        "first": first, "total": n, "per_sample": found.per_sample, "over": found.over, "crashed": found.crashed,
        "actions": _actions(surface.name), "codes": None, "illegal": [], "knobs": None, "terms": _sums(found),
    }  # fmt: skip
    if found.levers is None:
        codes = found.actions[first:n]
        told["codes"] = codes.tolist()
        told["illegal"] = (first + np.flatnonzero(found.masks[np.arange(first, n), codes] == 0)).tolist()
    else:
        told["knobs"] = {name: found.levers[first + 1 : n + 1, i].tolist() for i, name in enumerate(LEVERS)}
        told["illegal"] = [
            d for d in range(first, n) if not surface.legal(surface.action(found.actions[d]), found.masks[d])
        ]
    return told


def state(asked: Asked, decision: int) -> dict[str, Any]:
    """All there is to see before a decision; `total` is the end."""
    found = replay(asked)
    if not 0 <= decision <= found.total:
        raise ConfigError("decision", f"{decision} has not been played", allowed=f"0..{found.total}")
    batch = found.at(decision)
    facts = batch.facts(0) | {"score_so_far": batch.value(0)}
    told: dict[str, Any] = {
        "decision": decision, "total": found.total, "sample": decision // found.per_sample, "pool": None, "machine": None,
        "crashed": bool(batch.terminated[0]), "facts": {name: _finite(value) for name, value in facts.items()},
        "mask": allowed(found.masks[decision], found.task.surface.name),
    }  # fmt: skip
    if isinstance(found.task, PagedTask):
        told["pool"] = _pool(pool.look(batch, 0), found.task)
    else:
        told["machine"] = machine.figures(batch)
    return told


def _pool(seen: pool.Pool, task: PagedTask) -> dict[str, Any]:
    return {
        "gpu_blocks": seen.gpu_blocks, "block_tokens": task.rules.block_tokens, "cpu_blocks": seen.cpu_blocks,
        "kinds": [{"name": name, "what": what, "tier": tier} for (name, what), tier in zip(pool.KINDS, _TIERS, strict=True)],
        "owners": [[kind, blocks, request] for (kind, blocks), request in zip(seen.owners, seen.requests, strict=True)],
        "cpu": dict(seen.cpu), "cpu_kinds": list(pool.CPU_KINDS),
        "cpu_owners": [[kind, blocks, request] for (kind, blocks), request in zip(seen.cpu_owners, seen.cpu_requests, strict=True)],
        "queues": [
            {"name": q.name, "waits_ticks": list(q.waits_ticks), "seats": q.seats, "sla_ticks": q.sla_ticks} for q in seen.queues
        ],
    }  # fmt: skip


_TIERS = ("vip", "free", "vip", "free", "vip", "free", None)


def plain(action: Any) -> Any:
    """A dense action as JSON: a number, or the knobs that are set by name."""
    if action.shape == ():
        return int(action)
    return {name: value for name, value in zip(LEVERS, action.tolist(), strict=True) if not math.isnan(value)}


def words(found: Replay, decision: int) -> str:
    """What was done, for people: the action's name, or the knobs that were turned."""
    action = found.actions[decision]
    if found.levers is None:
        return paging.NAMES[int(action)].replace("_", " ")
    turned = [
        f"{name.replace('_', ' ')} {_knob(name, before)} → {_knob(name, after)}"
        for name, before, after in zip(LEVERS, found.levers[decision], found.levers[decision + 1], strict=True)
        if before != after
    ]
    return ", ".join(turned) or "as before"


def allowed(mask: Any, surface: str) -> list[Any] | dict[str, list[str]]:
    """What a mask lets pass: the actions' numbers; or, of knobs, the values of those that are restricted."""
    if surface == "paging":
        return [int(i) for i in np.flatnonzero(mask)]
    limited = {}
    for i, (name, values) in enumerate(GRID.items()):
        free = mask[OFFSETS[i] : OFFSETS[i + 1]]
        if not free.all():
            limited[name] = [_knob(name, value) for value, ok in zip(values, free, strict=True) if ok]
    return limited


def _knob(name: str, value: float) -> str:
    if name == "quantization_tier":
        return QUANTIZATION_TIERS[int(value)]
    if name in ("prefill_decode_split", "priority_routing"):
        return "on" if value else "off"
    return f"{value:g}"


def _actions(surface: str) -> list[dict[str, str]] | None:
    if surface != "paging":
        return None
    return [{"name": name.replace("_", " "), "what": what} for name, what in paging.ACTIONS]


def _sums(found: Replay) -> dict[str, Any]:
    """Each term's sum from the beginning, at up to MOST_POINTS samples."""
    per, n = found.per_sample, found.total
    samples = n // per
    stride = max(1, -(-samples // MOST_POINTS))
    at = np.arange(stride, samples + 1, stride)
    if samples and (len(at) == 0 or at[-1] != samples):
        at = np.append(at, samples)
    sums = np.cumsum(found.terms[:n], axis=0)[at * per - 1] if len(at) else np.zeros((0, found.terms.shape[1]))
    return {"names": list(found.task.reward_terms), "samples": at.tolist(), "sums": (sums.T + 0.0).tolist()}


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
