"""Surface `knobs`: steering a deployment window by window. The six knobs, their ranges, what became of an attempt, and what a policy sees.

A command is `Knobs` (a person's or a rule's), or the same as numbers: `levers`, float64[6] in the order of LEVERS.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from inferencegym.decision.columns import Column, Columns, Float32s, Floats, Masks
from inferencegym.decision.snapshot import NAMES
from inferencegym.ground.errors import ConfigError

QUANTIZATION_TIERS = ("FP16", "INT8", "INT4")

#: The knobs, in the order of a command's numbers.
LEVERS = (
    "batch_cap", "kv_budget_fraction", "speculation_depth", "quantization_tier", "prefill_decode_split", "priority_routing",
)  # fmt: skip

#: Smallest and largest value of the numeric knobs.
RANGES: Mapping[str, tuple[float, float]] = {
    "batch_cap": (1, 512),
    "kv_budget_fraction": (0.1, 1.0),
    "speculation_depth": (0, 8),
}

#: The values that the MultiDiscrete encoding and the mask know, knob by knob.
GRID: Mapping[str, tuple[float, ...]] = {
    "batch_cap": tuple(float(1 << i) for i in range(10)),
    "kv_budget_fraction": tuple(i / 10 for i in range(1, 11)),
    "speculation_depth": tuple(float(i) for i in range(9)),
    "quantization_tier": (0.0, 1.0, 2.0),
    "prefill_decode_split": (0.0, 1.0),
    "priority_routing": (0.0, 1.0),
}
#: Where each knob's choices begin in the mask.
OFFSETS = tuple(int(x) for x in np.cumsum([0, *(len(values) for values in GRID.values())]))

_LOW = np.array([1.0, 0.1, 0.0, 0.0, 0.0, 0.0])
_HIGH = np.array([512.0, 1.0, 8.0, 2.0, 1.0, 1.0])
_WHOLE = np.array([True, False, True, True, True, True])


@dataclass(frozen=True, slots=True)
class Knobs:
    """A command: the knobs to set; None leaves one as it is. Out-of-range values are refused, never clamped."""

    batch_cap: int | None = None
    """Requests running at once on a replica."""
    kv_budget_fraction: float | None = None
    """Share of the KV blocks this service may use; the rest is lent out and credited."""
    speculation_depth: int | None = None
    """Draft tokens a step."""
    quantization_tier: str | None = None
    """Weight format: FP16, INT8 or INT4."""
    prefill_decode_split: bool | None = None
    """Whether prefill and decode run in pools of their own."""
    priority_routing: bool | None = None
    """Whether priority classes order the queue and choose victims."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is None:
                continue
            whole = name != "kv_budget_fraction"
            number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
            if not number or not low <= value <= high or (whole and value != int(value)):
                what = "whole number" if whole else "number"
                raise ConfigError(name, f"{value!r} is no {what} in range", allowed=f"{low:g}..{high:g}")
        if self.quantization_tier is not None and self.quantization_tier not in QUANTIZATION_TIERS:
            raise ConfigError(
                "quantization_tier", f"'{self.quantization_tier}' is not known", allowed=", ".join(QUANTIZATION_TIERS)
            )
        for name in ("prefill_decode_split", "priority_routing"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool | np.bool_):
                raise ConfigError(name, f"{value!r} is neither true nor false", allowed="true, false")

    def given(self) -> dict[str, object]:
        """The knobs that are to be set."""
        return {knob.name: value for knob in fields(self) if (value := getattr(self, knob.name)) is not None}

    def levers(self) -> Floats:
        """The command as float64[6]; NaN leaves a knob as it is."""
        tier = None if self.quantization_tier is None else QUANTIZATION_TIERS.index(self.quantization_tier)
        numbers = (
            self.batch_cap, self.kv_budget_fraction, self.speculation_depth, tier, self.prefill_decode_split, self.priority_routing,
        )  # fmt: skip
        return np.array([np.nan if number is None else float(number) for number in numbers])

    @classmethod
    def of(cls, levers: Floats) -> Knobs:
        """The inverse of `levers`."""
        check_levers(levers)
        batch, kv, depth, tier, split, priority = (None if np.isnan(x) else x for x in levers.tolist())
        return cls(
            batch_cap=None if batch is None else int(batch),
            kv_budget_fraction=kv,
            speculation_depth=None if depth is None else int(depth),
            quantization_tier=None if tier is None else QUANTIZATION_TIERS[int(tier)],
            prefill_decode_split=None if split is None else bool(split),
            priority_routing=None if priority is None else bool(priority),
        )


def check_levers(levers: Floats) -> None:
    """ConfigError if a row of levers (float64[..., 6]) is out of range or not whole where it must be; NaN leaves a knob as it is."""
    bad = ~np.isnan(levers) & ~((levers >= _LOW) & (levers <= _HIGH) & (~_WHOLE | (levers == np.floor(levers))))
    if bad.any():
        where = tuple(np.argwhere(bad)[0])
        name = LEVERS[where[-1]]
        raise ConfigError(
            name, f"{levers[where]:g} is out of range", allowed=f"{_LOW[where[-1]]:g}..{_HIGH[where[-1]]:g}"
        )


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a command: which knobs took effect, and why the others did not. A refused knob is data, not a log line."""

    accepted: Mapping[str, object] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


COLUMNS = Columns(
    [
        Column("queue_depth", "requests", 0, 10_000, "requests that wait for a seat", log=True),
        Column("active_requests", "requests", 0, 4096, "requests that run, all replicas together", log=True),
        Column("kv_cache_occupancy", "share", 0, 1, "KV blocks that requests hold, of those this service may use"),
        Column("mean_prompt_length", "tokens", 0, 131_072, "mean prompt of the window's arrivals", log=True),
        Column("p50_ttft_ms", "ms", 0, 120_000, "median time to first token, of the window's first tokens", log=True),
        Column("p99_ttft_ms", "ms", 0, 120_000, "99th percentile of the same", log=True),
        Column("p50_itl_ms", "ms", 0, 10_000, "median gap between tokens in the window", log=True),
        Column("p99_itl_ms", "ms", 0, 10_000, "99th percentile of the same", log=True),
        Column("throughput_tps", "tokens/s", 0, 200_000, "tokens emitted", log=True),
        Column("slo_compliance_rate", "share", 0, 1, "first tokens within their class's TTFT objective, of those that came or are overdue"),
        Column("gpu_memory_used_gb", "GB", 0, 4096, "weights and KV in use, all GPUs", log=True),
        Column("estimated_cost_per_1k", "US$", 0, 0.02, "GPU price of the window, less credit for lent KV, per 1,000 tokens emitted"),
        Column("request_arrival_rate", "requests/s", 0, 1000, "arrivals", log=True),
        Column("spec_acceptance_rate", "share", 0, 1, "draft tokens kept, of those made"),
        Column("eviction_events", "blocks", 0, 1_000_000, "cached KV blocks thrown out", log=True),
        Column("preemptions", "requests", 0, 4096, "requests that lost their seat and KV", log=True),
        Column("goodput_rps", "requests/s", 0, 1000, "requests finished within all their objectives", log=True),
        Column("oldest_wait_ms", "ms", 0, 600_000, "longest wait in the queue now", log=True),
        Column("waiting_prompt_tokens", "tokens", 0, 10_000_000, "prompt tokens in the queue", log=True),
        Column("vip_queue_depth", "requests", 0, 10_000, "waiting requests of the most urgent class", log=True),
        Column("vip_slo_compliance_rate", "share", 0, 1, "`slo_compliance_rate` of the most urgent class"),
        Column("mean_output_length", "tokens", 0, 32_768, "mean answer of the requests that finished", log=True),
        Column("batch_cap", "requests", 0, 512, "knob in force", log=True),
        Column("kv_budget_fraction", "share", 0, 1, "knob in force"),
        Column("speculation_depth", "tokens", 0, 8, "knob in force"),
        Column("quantization_tier", "index", 0, 2, "knob in force: 0 FP16, 1 INT8, 2 INT4"),
        Column("prefill_decode_split", "0 or 1", 0, 1, "knob in force"),
        Column("priority_routing", "0 or 1", 0, 1, "knob in force"),
        Column("pause_left_s", "s", 0, 60, "rest of a reload that is going on", log=True),
        Column("window_s", "s", 0, 60, "length of a window", log=True),
        Column("snapshot_age_s", "s", 0, 60, "how old the figures are", log=True),
        Column("episode_fraction", "share", 0, 1, "how much of the episode is over"),
    ]
)  # fmt: skip
assert COLUMNS.names == NAMES, "the surface's columns are the snapshot's fields"


class KnobsSurface:
    """What a policy of a deployment sees and may do."""

    name = "knobs"
    cadence = "window"
    columns = COLUMNS
    mask_size = OFFSETS[-1]

    def dense(self, action: Any) -> Floats:
        """float64[6] of a `Knobs`, of a mapping by knob name (a Dict space's sample, JSON), or of six numbers."""
        if isinstance(action, Knobs):
            return action.levers()
        if isinstance(action, Mapping):
            unknown = sorted(set(action) - set(LEVERS), key=str)
            if unknown:
                raise ConfigError("action", f"there is no knob '{unknown[0]}'", allowed=", ".join(LEVERS))
            return np.array([_number(name, action.get(name)) for name in LEVERS])
        given = np.asarray(action)
        if given.shape != (6,) or given.dtype.kind not in "biuf":
            what = f"{action!r}" if given.shape == () else f"{given.dtype} of shape {given.shape}"
            raise ConfigError("action", what, allowed=f"six numbers ({', '.join(LEVERS)}), a mapping, or Knobs")
        levers = given.astype(np.float64)
        if np.isnan(levers).any():
            raise ConfigError("action", f"{LEVERS[int(np.argmax(np.isnan(levers)))]} is NaN", allowed="numbers")
        check_levers(levers)
        return levers

    def action(self, dense: Floats) -> Knobs:
        """The command of six numbers."""
        return Knobs.of(dense)

    def legal(self, action: Any, mask: Masks) -> bool:
        """Whether the mask allows every knob that is set to a value of the grid, or to one between two allowed ones."""
        levers = self.dense(action)
        for i, name in enumerate(LEVERS):
            if np.isnan(levers[i]):
                continue
            allowed = np.array(GRID[name])[mask[OFFSETS[i] : OFFSETS[i + 1]] == 1]
            if len(allowed) == 0 or not allowed.min() <= levers[i] <= allowed.max():
                return False
        return True

    def describe(self, observation: Float32s, mask: Masks) -> str:
        """The situation and the knobs in words."""
        seen = self.columns.read(observation)
        lines = ["State of an LLM serving deployment at the end of the last window:"]
        lines += [f"- {c.name}: {seen[c.name]:.4g} {c.unit} ({c.what})" for c in self.columns]
        lines.append(
            'Answer with one JSON object that sets the knobs for the next window, such as {"batch_cap": 64, ...}:'
        )
        for i, name in enumerate(LEVERS):
            values = [v for v, ok in zip(GRID[name], mask[OFFSETS[i] : OFFSETS[i + 1]], strict=True) if ok]
            if name == "quantization_tier":
                allowed = ", ".join(QUANTIZATION_TIERS[int(v)] for v in values)
            elif name in RANGES:
                allowed = f"{min(values):g} to {max(values):g}"
            else:
                allowed = ", ".join("true" if v else "false" for v in values)
            lines.append(f"- {name}: {allowed}")
        return "\n".join(lines)

    def parse(self, text: str) -> Knobs:
        """The command in an answer: its last JSON object that names a knob."""
        for found in reversed(re.findall(r"\{[^{}]*\}", text)):
            try:
                data = json.loads(found)
            except json.JSONDecodeError:
                continue
            if isinstance(data, dict) and set(data) & set(LEVERS):
                return Knobs.of(self.dense(data))
        raise ConfigError(
            "answer", "holds no JSON object with knobs", allowed='{"batch_cap": 64, "kv_budget_fraction": 0.9, ...}'
        )


def _number(name: str, value: Any) -> float:
    """One knob of a mapping as a number; NaN if it is not given."""
    if value is None:
        return float("nan")
    switch = name in ("prefill_decode_split", "priority_routing")
    allowed = "true, false" if switch else "a number"
    if name == "quantization_tier":
        allowed = ", ".join(QUANTIZATION_TIERS)
        if isinstance(value, str) and value in QUANTIZATION_TIERS:
            return float(QUANTIZATION_TIERS.index(value))
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in ("biuf" if switch else "iuf") or not np.isfinite(array.item()):
        raise ConfigError(name, f"{value!r} is not one finite number", allowed=allowed)
    number = float(array.item())
    levers = np.full(6, np.nan)
    levers[LEVERS.index(name)] = number
    check_levers(levers)
    return number
