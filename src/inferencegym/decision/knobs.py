"""The knobs of a deployment that a policy can turn from window to window, their ranges, and what became of an attempt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from inferencegym.ground.errors import ConfigError

QUANTIZATION_TIERS = ("FP16", "INT8", "INT4")

#: Smallest and largest value of the numeric knobs.
RANGES: Mapping[str, tuple[float, float]] = {
    "batch_cap": (1, 512),
    "kv_budget_fraction": (0.1, 1.0),
    "speculation_depth": (0, 8),
}


@dataclass(frozen=True, slots=True)
class Knobs:
    """A command: the knobs to set; None leaves one as it is. Out-of-range values are refused, never clamped."""

    batch_cap: int | None = None
    """Requests running at once."""
    kv_budget_fraction: float | None = None
    """Share of the KV blocks this service may use."""
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
            if value is not None and not low <= value <= high:
                raise ConfigError(name, f"{value} is out of range", allowed=f"{low:g}..{high:g}")
        if self.quantization_tier is not None and self.quantization_tier not in QUANTIZATION_TIERS:
            raise ConfigError(
                "quantization_tier", f"'{self.quantization_tier}' is not known", allowed=", ".join(QUANTIZATION_TIERS)
            )

    def given(self) -> dict[str, object]:
        """The knobs that are to be set."""
        return {knob.name: value for knob in fields(self) if (value := getattr(self, knob.name)) is not None}


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a command: which knobs took effect, and why the others did not. A refused knob is data, not a log line."""

    accepted: Mapping[str, object] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
