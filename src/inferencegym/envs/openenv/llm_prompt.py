"""What a language model is told: the task's objectives and the surface once, then each situation in short, with what came of earlier decisions.

What stays the same comes first, so that an endpoint's prompt cache holds it. Units stand with the columns, in the surface's own words.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from inferencegym.decision.columns import Float32s, Masks
from inferencegym.decision.knobs import GRID, LEVERS, OFFSETS, QUANTIZATION_TIERS
from inferencegym.decision.paging import NAMES
from inferencegym.decision.surface import Surface
from inferencegym.envs.batch import Task

#: Columns that tell what came of a decision.
OUTCOME = {
    "knobs": ("slo_compliance_rate", "p99_ttft_ms", "goodput_rps", "queue_depth", "kv_cache_occupancy", "preemptions"),
    "paging": ("gpu_utilization_pct", "free_queue_pressure", "vip_queue_pressure", "free_max_wait_time_pct", "vip_max_wait_time_pct"),
}  # fmt: skip
_SWITCHES = ("prefill_decode_split", "priority_routing")


def system_prompt(surface: Surface, task: Task | None = None) -> str:
    """What holds for a whole episode: the objectives (if the task is known), every column with its unit and meaning, every action."""
    whole = surface.describe(
        np.zeros(len(surface.columns), np.float32), np.ones(surface.mask_size, np.int8)
    ).splitlines()
    # The surface's own words after its list of figures: the actions, and the form of an answer.
    actions = whole[1 + len(surface.columns) :]
    parts = ["You steer a server of large language models. You are told how it stands and answer with the next action."]
    parts += objectives(task) if task is not None else []
    parts.append("You are told:")
    parts += [f"- {column.name}, {column.unit}: {column.what}" for column in surface.columns]
    return "\n".join([*parts, *actions, "Answer with the JSON alone."])


def objectives(task: Task) -> list[str]:
    """What the task is and what its score is made of, in sentences, from its data file."""
    lines = [f"Task: {task.description}"]
    file = getattr(task, "file", None)
    if file is not None:
        for one in file.classes:
            lines.append(
                f"- Requests of class {one.name} (weight {one.weight:g}) must have their first token within {1e3 * one.ttft_s:g} ms"
                f" and then a token every {1e3 * one.tpot_s:g} ms on average."
            )
        prices = file.prices
        lines.append(
            f"Score: +{prices.served:g} x share of requests finished, +{prices.in_slo:g} x share finished in time, +{prices.lent_kv:g} x share of KV"
            f" memory lent out, -{prices.preemption:g} x preemptions a request; for quality "
            + ", ".join(
                f"-{loss:g} in {tier}" for tier, loss in zip(QUANTIZATION_TIERS, prices.quality_loss, strict=True)
            )
            + "."
        )
    rules = getattr(task, "rules", None)
    if rules is not None:
        if rules.free_sla_ticks:
            lines.append(
                f"- Free requests must be admitted within {rules.free_sla_ticks} ticks, VIP within {rules.vip_sla_ticks}."
            )
        lines.append(
            "Score: first the requests that finish (in time, where there is a limit), then how soon, then how many returning users find their cache."
            " A crash ends the episode and costs nearly all of it."
        )
    return lines


def situation(surface: Surface, observation: Float32s, mask: Masks) -> str:
    """How things stand now: each column's value, and what the mask leaves of the actions."""
    seen = surface.columns.read(observation)
    lines = [f"{name}: {value:.4g}" for name, value in seen.items()]
    return "\n".join([*lines, *_left(surface, mask)])


def _left(surface: Surface, mask: Masks) -> list[str]:
    """What is possible now: of the paging actions all, of the knobs only those that the mask narrows."""
    if surface.name == "paging":
        return ["possible now: " + ", ".join(f"{i} {NAMES[i]}" for i in np.flatnonzero(mask).tolist())]
    lines = []
    for i, name in enumerate(LEVERS):
        ok = mask[OFFSETS[i] : OFFSETS[i + 1]]
        if not ok.all():
            allowed = [_value(name, value) for value, yes in zip(GRID[name], ok, strict=True) if yes]
            lines.append(f"{name} may now only be: {', '.join(json.dumps(value) for value in allowed)}")
    return lines


def answer(surface: Surface, action: Any, observation: Float32s) -> str:
    """An action as the model should write it; knobs that it leaves alone are written as they stand."""
    if surface.name == "paging":
        return json.dumps({"action": int(action)})
    seen = surface.columns.read(observation)
    given = surface.dense(action)
    levers = [seen[name] if np.isnan(value) else value for name, value in zip(LEVERS, given.tolist(), strict=True)]
    return json.dumps({name: _value(name, value) for name, value in zip(LEVERS, levers, strict=True)})


def _value(name: str, value: float) -> Any:
    """A lever's number as JSON has it."""
    if name == "quantization_tier":
        return QUANTIZATION_TIERS[round(value)]
    if name in _SWITCHES:
        return bool(round(value))
    return round(value, 3) if name == "kv_budget_fraction" else round(value)


class History:
    """The last decisions and what came of each: means, over the time it held, of the columns in OUTCOME."""

    def __init__(self, surface: Surface, length: int) -> None:
        self._surface, self._length = surface, length
        self._names: Sequence[str] = OUTCOME[surface.name]
        self._at = [surface.columns.index(name) for name in self._names]
        self._done: deque[str] = deque(maxlen=length)
        self._held = ""
        self._seen: list[list[float]] = []

    def see(self, observation: Float32s) -> None:
        """What was seen while the decision held: the first observation after it is its first outcome."""
        if self._held:
            natural = self._surface.columns.decode(observation)
            self._seen.append([float(natural[i]) for i in self._at])

    def decide(self, said: str) -> None:
        """A new decision, as text; the one before is closed."""
        self._done += self._current()
        self._held, self._seen = said, []

    def lines(self) -> list[str]:
        """The last decisions, oldest first; the newest is the one that still holds."""
        return [*self._done, *self._current()][-self._length :]

    def _current(self) -> list[str]:
        if not self._seen:
            return []
        means = np.mean(self._seen, axis=0).tolist()
        figures = ", ".join(f"{name} {value:.4g}" for name, value in zip(self._names, means, strict=True))
        return [f"{self._held} -> {figures}"]
